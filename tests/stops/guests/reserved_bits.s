# Several reserved bits of a selector.
#~ modes bare emulated passthrough
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: load_idt
        wrmsr_const IA32_PERFEVTSEL0, 0xf005 << 36
        debug_exit 0
        idt_storage
#= triple fault, first exception vector 13 at rip 0x100016 (reserved_bits.s:7)
#= why: wrmsr IA32_PERFEVTSEL0 (0x186) = 0xf005000000000: bits 36, 38 and 48-51 are reserved: #GP(0)
#= why: #GP is not delivered: its gate in the IDT is empty: #DF(0)
#= why: #DF is not delivered: its gate in the IDT is empty: a triple fault
