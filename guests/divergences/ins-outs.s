# REP OUTSB.
#
#: modes bare emulated
#: expect bare: instructions == 6
#: expect emulated: instructions == 9

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        lea rsi, [rip + cell]
        mov edx, 0x80
        mov ecx, 4
        rep outsb
        debug_exit 0

        .data
cell:   .long 1
