# OUTSB loads from memory, and leaves the guest: the load is the VMM's.
#
#: modes bare emulated
#: expect bare: pmc0 == 1
#: expect emulated: pmc0 == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, 0x81d0 | EVTSEL_OS | EVTSEL_EN
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
        lea rsi, [rip + cell]
        mov edx, 0x80
        outsb
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        debug_exit 0

        .data
cell:   .byte 1
