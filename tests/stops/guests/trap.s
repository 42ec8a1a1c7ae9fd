# INT3 without an IDT.
#~ modes bare emulated
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: int3
#= triple fault, first exception vector 13 at rip 0x100000 (trap.s:6)
#= why: int 0x3 is not delivered: no IDT is loaded: #GP(0x1a)
#= why: #GP is not delivered: no IDT is loaded: #DF(0)
#= why: #DF is not delivered: no IDT is loaded: a triple fault
