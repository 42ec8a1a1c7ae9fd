# A division by 0.
#~ modes bare emulated
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: xor ecx, ecx
        div ecx
#= triple fault, first exception vector 0 at rip 0x100002 (divide.s:7)
#= why: `div ecx` divides by 0, or its quotient has no room: #DE
#= why: #DE is not delivered: no IDT is loaded: #DF(0)
#= why: #DF is not delivered: no IDT is loaded: a triple fault
