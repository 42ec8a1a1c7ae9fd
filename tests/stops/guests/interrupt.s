# An interrupt without an IDT.
#~ modes bare emulated
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: lapic_enable_x2apic
        sti
        wrmsr_const IA32_X2APIC_SELF_IPI, 0x50
        nop
        debug_exit 0
#= triple fault, first exception vector 80 at rip 0x100031 (interrupt.s:9)
#= why: interrupt 0x50 is not delivered: no IDT is loaded: #GP(0x283)
#= why: #GP is not delivered: no IDT is loaded: #DF(0)
#= why: #DF is not delivered: no IDT is loaded: a triple fault
