# RDTSC on both sides of an exit.
#
#: modes bare emulated
#: expect bare: rsi < 3852
#: expect emulated: rsi > 3852

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        rdtsc
        mov rsi, rax
        in al, 0x61
        rdtsc
        sub rax, rsi
        mov rsi, rax
        debug_exit 0
