# E5: masked events: a filter entry that stands for many unit masks, less those that others exclude.
#
# Event 0xD0 counts loads with unit mask 0x81, stores with 0x82 and both with 0x83. The host allows every
# unit mask from 0x80 to 0x83 by one entry that looks at the upper six bits only, and excludes 0x82.
#
# Three instructions touch memory here: a store, a load, and one that does both and counts in both.
#
#: row E5
#: upstream pmu_event_filter_test.c test_masked_events
#: args --filter e05_masked_events.toml
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: pmc0 == LOADS
#: expect bare: pmc1 == STORES
#: expect emulated passthrough: pmc1 == 0
#: expect all: pmc2 == LOADS + STORES
# Instructions are not on the list.
#: expect bare: pmc3 == insns(opened, closed)
#: expect emulated passthrough: pmc3 == 0
#: expect all: mem32(scratch) == 1

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .equ LOADS, 2
        .equ STORES, 2
        .equ ON, EVTSEL_OS | EVTSEL_EN

        .text
        .globl _start
_start:
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_MEM_INST_RETIRED_ALL_LOADS | ON
        wrmsr_const IA32_PERFEVTSEL1, EVT_MEM_INST_RETIRED_ALL_STORES | ON
        wrmsr_const IA32_PERFEVTSEL2, EVT_MEM_INST_RETIRED_ANY | ON
        wrmsr_const IA32_PERFEVTSEL3, EVT_INST_RETIRED_ANY_P | ON
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0 | GLOBAL_PMC1 | GLOBAL_PMC2 | GLOBAL_PMC3
opened:
        mov dword ptr [rip + scratch], 0
        mov eax, [rip + scratch]
        inc dword ptr [rip + scratch]
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
closed:
        debug_exit 0

        .bss
        .balign 8
scratch:
        .zero 8
