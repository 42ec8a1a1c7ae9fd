# A loop that does nothing for a hundred million cycles: something to look at from outside.

        .intel_syntax noprefix
        .include "macros.inc"

        .text
        .globl _start
_start:
        mov ecx, 200000000
1:      dec ecx
        jnz 1b
        debug_exit 0
