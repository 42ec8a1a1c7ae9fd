# A count across exits has not one instruction of the host in it: GLOBAL_CTRL is 0 from the first cycle behind
# an exit on, before the host could switch anything.
#
#: modes passthrough
#: expect all: pmc0 == insns(open, closed)

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_EN
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
open:
        .rept 10
        cpuid
        .endr
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
closed:
        debug_exit 0
