# An NMI without an IDT.
#~ modes bare emulated
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: lapic_enable_x2apic
        wrmsr_const IA32_X2APIC_ICR, 0x44400
        nop
        debug_exit 0
#= triple fault, first exception vector 2 at rip 0x100030 (nmi.s:8)
#= why: NMI is not delivered: no IDT is loaded: #GP(0x13)
#= why: #GP is not delivered: no IDT is loaded: #DF(0)
#= why: #DF is not delivered: no IDT is loaded: a triple fault
