# GLOBAL_CTRL with the bit of a fourth fixed counter.
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
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 1 << 35
        debug_exit 0
