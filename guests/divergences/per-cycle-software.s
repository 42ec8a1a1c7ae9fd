# CMASK of 255 counts nothing in hardware; KVM ignores it.
#
#: modes bare emulated
#: expect bare: pmc0 == 0
#: expect emulated: pmc0 == 4

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_EN | 0xff << 24
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
        in al, 0x61
        in al, 0x61
        in al, 0x61
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        debug_exit 0
