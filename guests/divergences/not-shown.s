# The fourth fixed counter, which the silicon has and CPUID does not show.
#
#: modes bare emulated
#: expect bare: exit_code == 0
#: expect emulated: stop == "triple-fault"

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        mov ecx, IA32_FIXED_CTR0 + 3
        rdmsr
        debug_exit 0
