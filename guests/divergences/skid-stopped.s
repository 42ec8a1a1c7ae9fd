# PMIs come 5000 cycles late; the window is closed before.
#
#: modes bare emulated
#: args --pmi-skid 5000:0
#: expect bare: global_status == 1
#: expect emulated: global_status == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_EN | EVTSEL_INT
        wrmsr_const IA32_A_PMC0, -8 & 0xffffffffffff
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        debug_exit 0
