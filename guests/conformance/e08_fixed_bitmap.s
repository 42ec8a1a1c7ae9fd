# E8: of the fixed counters the filter's bitmap decides, and nothing else.
#
# The host denies fixed counters 0 and 2. Its list also denies cycles, which is what fixed counter 1
# counts: that is about selectors, so counter 0 stops and fixed counter 1 does not.
#
#: row E8
#: upstream pmu_event_filter_test.c test_fixed_counter_bitmap
#: args --filter e08_fixed_bitmap.toml
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect bare: fixed0 == insns(opened, again) + ROUNDS * insns(again, done) + insns(done, closed)
#: expect emulated passthrough: fixed0 == 0
#: expect all: fixed1 > ROUNDS / 4
#: expect bare: fixed2 > ROUNDS / 4
#: expect emulated passthrough: fixed2 == 0
#: expect bare: pmc0 > ROUNDS / 4
#: expect emulated passthrough: pmc0 == 0
# Instructions are not on the list, although fixed counter 0 is denied.
#: expect all: pmc1 == insns(opened, again) + ROUNDS * insns(again, done) + insns(done, closed)
# What was written reads back.
#: expect all: mem64(control) == FIXED0_OS + FIXED1_OS + FIXED2_OS

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .equ ROUNDS, 42
        .equ ON, EVTSEL_OS | EVTSEL_EN

        .text
        .globl _start
_start:
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_CPU_CLK_UNHALTED_THREAD_P | ON
        wrmsr_const IA32_PERFEVTSEL1, EVT_INST_RETIRED_ANY_P | ON
        wrmsr_const IA32_FIXED_CTR_CTRL, FIXED0_OS | FIXED1_OS | FIXED2_OS
        rdmsr_rax IA32_FIXED_CTR_CTRL
        mov [rip + control], rax
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0 | GLOBAL_PMC1 | GLOBAL_FIXED0 | GLOBAL_FIXED1 | GLOBAL_FIXED2
opened:
        mov ecx, ROUNDS
again:
        loop again
done:
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
closed:
        debug_exit 0

        .bss
        .balign 8
control:
        .zero 8
