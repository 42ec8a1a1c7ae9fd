# A counter gets another value in its window: the counter passes, GLOBAL_CTRL exits.
#
#: modes bare mediated
#: expect bare: pmc0 == 7
#: expect mediated: pmc0 == 6

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_EN
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
        wrmsr_const IA32_A_PMC0, 0
        nop
        nop
        nop
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        debug_exit 0
