# A plain counter of instructions beside one with PEBS.
#
#: modes bare emulated
#: args --cpu icx --guest pmu.perf_caps=0x24c0
#: expect bare: pmc1 == 16
#: expect emulated: pmc1 == 1

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        .equ DS_AREA, 0x180000
        .equ RECORDS, 0x181000
        mov rbx, DS_AREA
        mov qword ptr [rbx + 0x20], RECORDS
        mov qword ptr [rbx + 0x28], RECORDS
        mov qword ptr [rbx + 0x30], RECORDS + 32 * 60
        mov qword ptr [rbx + 0x38], RECORDS + 32 * 60
        mov qword ptr [rbx + 0x40], -4
        mov qword ptr [rbx + 0x48], -4
        wrmsr_const IA32_DS_AREA, DS_AREA
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_BR_INST_RETIRED_ALL_BRANCHES | EVTSEL_OS | EVTSEL_EN
        wrmsr_const IA32_A_PMC0, -40 & 0xffffffffffff
        wrmsr_const IA32_PERFEVTSEL1, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_EN
        wrmsr_const IA32_A_PMC1, 0
        wrmsr_const IA32_PEBS_ENABLE, 1
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0 | GLOBAL_PMC1
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
        mov rsi, [rbx + 0x28]
        debug_exit 0
