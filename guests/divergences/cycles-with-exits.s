# Cycles around an instruction that leaves the guest.
#
#: modes bare emulated
#: expect bare: pmc0 > 571
#: expect emulated: pmc0 < 571

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_CPU_CLK_UNHALTED_THREAD_P | EVTSEL_OS | EVTSEL_EN
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
        in al, 0x61
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        debug_exit 0
