# A value that the register does not take.
#~ modes bare emulated
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: wrmsr_const IA32_APIC_BASE, 0xfee00400
        debug_exit 0
#= triple fault, first exception vector 13 at rip 0x10000f (value.s:6)
#= why: wrmsr IA32_APIC_BASE (0x1b) = 0xfee00400: value not taken: #GP(0)
#= why: #GP is not delivered: no IDT is loaded: #DF(0)
#= why: #DF is not delivered: no IDT is loaded: a triple fault
