# GLOBAL_STATUS_RESET of bit 58.
#
#: modes bare mediated
#: expect bare: exit_code == 0
#: expect mediated: stop == "triple-fault"

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        wrmsr_const IA32_PERF_GLOBAL_STATUS_RESET, 1 << 58
        debug_exit 0
