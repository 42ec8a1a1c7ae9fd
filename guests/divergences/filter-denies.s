# A filter denies instructions.
#
#: modes bare emulated
#: args --filter deny.toml
#: expect bare: pmc0 == 10
#: expect emulated: pmc0 == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_EN
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
        nop
        nop
        nop
        nop
        nop
        in al, 0x61
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        debug_exit 0
