# A loop without an end.
#~ modes bare none
#~ args --max-insns 1000
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: jmp _start
#= max-insns at rip 0x100000 (limit_insns.s:7)
