# CPUID while GLOBAL_CTRL has the counter off.
#
#: modes passthrough
#: expect passthrough: pmc0 == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_EN
        in al, 0x61
        in al, 0x61
        debug_exit 0
