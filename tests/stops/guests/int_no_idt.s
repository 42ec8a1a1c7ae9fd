# INT n without an IDT.
#~ modes bare emulated
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: int 0x40
        debug_exit 0
#= triple fault, first exception vector 13 at rip 0x100000 (int_no_idt.s:6)
#= why: int 0x40 is not delivered: no IDT is loaded: #GP(0x202)
#= why: #GP is not delivered: no IDT is loaded: #DF(0)
#= why: #DF is not delivered: no IDT is loaded: a triple fault
