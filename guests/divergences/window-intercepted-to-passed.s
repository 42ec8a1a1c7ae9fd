# The selector opens the window, with an exit; GLOBAL_CTRL closes it, without one.
#
#: modes bare passthrough
#: expect bare: pmc0 == 7
#: expect passthrough: pmc0 == 8

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_EN
        nop
        nop
        nop
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        debug_exit 0
