# A selector that there is not.
#~ modes bare emulated
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: mov eax, 0x50
        mov ds, eax
#= triple fault, first exception vector 13 at rip 0x100005 (selector.s:7)
#= why: `mov ds, eax` needs selector 0x50: #GP(0x50)
#= why: #GP is not delivered: no IDT is loaded: #DF(0)
#= why: #DF is not delivered: no IDT is loaded: a triple fault
