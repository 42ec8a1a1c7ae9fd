# CPUID is the event that wraps the counter. It exits, so that the wrap is KVM's to see.
#
#: modes passthrough
#: expect all: r15 == GLOBAL_PMC0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .equ COUNTER, (1 << 48) - 1
        .text
        .globl _start
_start:
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_EN
        wrmsr_const IA32_A_PMC0, -1 & COUNTER
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
        cpuid
        rdmsr_rax IA32_PERF_GLOBAL_STATUS
        mov r15, rax
        debug_exit 0
