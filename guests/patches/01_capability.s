# Whoever profiles a whole CPU, guests included, stops counting where the PMU is given away: at the first VM
# entry the event goes into ERROR, for good.
#
#: modes passthrough
#: args --host-event instructions:D
#: expect all: counted("instructions:D") < ROUNDS

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .equ ROUNDS, 50000
        .text
        .globl _start
_start:
        mov ecx, ROUNDS
1:      dec ecx
        jnz 1b
        debug_exit 0
