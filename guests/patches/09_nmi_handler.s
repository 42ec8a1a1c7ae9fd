# An NMI of the host comes upon a guest that has an overflow waiting, here the watchdog's. The handler of perf
# sees GLOBAL_STATUS, and would acknowledge what is the guest's.
#
#: modes passthrough
#: args --watchdog hpet --watchdog-thresh 0.0001
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
        wrmsr_const IA32_A_PMC0, -2 & COUNTER
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        rdtsc
        mov ebx, eax
1:      pause
        rdtsc
        sub eax, ebx
        cmp eax, 250000
        jb 1b
        rdmsr_rax IA32_PERF_GLOBAL_STATUS
        mov r15, rax
        debug_exit 0
