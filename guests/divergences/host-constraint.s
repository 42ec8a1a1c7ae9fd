# Four pinned events of the host hold the counters that could count this one.
#
#: modes bare emulated
#: args --host-event r0180:D*4
#: expect bare: pmc0 == 4
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
        mov rax, [rip + cell]
        mov rax, [rip + cell]
        mov rax, [rip + cell]
        mov rax, [rip + cell]
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        debug_exit 0

        .data
cell:   .quad 1
