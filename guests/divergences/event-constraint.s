# Loads on PMC4, which cannot count them.
#
#: modes bare emulated
#: expect bare: pmc4 == 0
#: expect emulated: pmc4 == 1

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL4, 0x81d0 | EVTSEL_OS | EVTSEL_EN
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC4
        pop rbx
        push rbx
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        debug_exit 0
