# What a guest writes to a selector exits, and reaches the hardware with the next switch.
#
#: modes passthrough
#: expect all: pmc3 == insns(open, closed)

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL3, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_EN
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC3
open:
        .rept 7
        nop
        .endr
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
closed:
        debug_exit 0
