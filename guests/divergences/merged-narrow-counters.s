# The VMM exposes counters of 40 bits; hardware's do not wrap there, and RDPMC does not say so.
#
#: modes bare mediated
#: args --guest pmu.width=40
#: expect bare: pmc0 == 0x10000000007
#: expect mediated: pmc0 == 7

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_A_PMC0, 1 << 40 | 7
        rdpmc_rax 0
        debug_exit 0
