# KVM counts the WRMSR that opens, which leaves one; then one event comes, and a WRMSR that ends all.
#
#: modes bare emulated
#: expect bare: global_status == 1
#: expect emulated: global_status == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_EN
        wrmsr_const IA32_A_PMC0, -2 & 0xffffffffffff
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
        xor eax, eax
        wrmsr
        debug_exit 0
