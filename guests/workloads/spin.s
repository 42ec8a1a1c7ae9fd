# A loop that does nothing for 150 million cycles, 50 ms at 3 GHz: something to look at from outside.

        .intel_syntax noprefix
        .include "macros.inc"

        .text
        .globl _start
_start:
        mov ecx, 300000000
1:      dec ecx
        jnz 1b
        debug_exit 0
