# A fixed counter gets a bit beyond its width.
#
#: modes bare emulated
#: expect bare: stop == "triple-fault"
#: expect emulated: exit_code == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        wrmsr_const IA32_FIXED_CTR0, 1 << 60 | 5
        debug_exit 0
