# An IDT without gates, and a reserved bit.
#~ modes bare emulated passthrough mediated
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: load_idt
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 1 << 44
        debug_exit 0
        idt_storage
#= triple fault, first exception vector 13 at rip 0x100016 (reserved_bit.s:7)
#= why: wrmsr IA32_PERF_GLOBAL_CTRL (0x38f) = 0x100000000000: bit 44 is reserved: #GP(0)
#= why: #GP is not delivered: its gate in the IDT is empty: #DF(0)
#= why: #DF is not delivered: its gate in the IDT is empty: a triple fault
