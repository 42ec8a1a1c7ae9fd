# An address that is none.
#~ modes bare emulated
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: wrmsr_const IA32_LSTAR, 0x8000000000000000
        debug_exit 0
#= triple fault, first exception vector 13 at rip 0x10000f (not_canonical.s:6)
#= why: wrmsr IA32_LSTAR (0xc0000082) = 0x8000000000000000: address not canonical: #GP(0)
#= why: #GP is not delivered: no IDT is loaded: #DF(0)
#= why: #DF is not delivered: no IDT is loaded: a triple fault
