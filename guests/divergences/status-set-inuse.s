# IA32_PERF_GLOBAL_INUSE, which version 4 has.
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
        mov ecx, IA32_PERF_GLOBAL_INUSE
        rdmsr
        debug_exit 0
