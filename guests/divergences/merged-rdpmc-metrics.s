# RDPMC of PERF_METRICS.
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
        rdpmc_rax 0x20000000
        debug_exit 0
