# RDPMC of a counter of instructions in its window.
#
#: modes bare emulated
#: expect bare: rsi == 6
#: expect emulated: rsi == 7

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
        xor ecx, ecx
        rdpmc
        mov esi, eax
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        debug_exit 0
