# PEBS on counter 0 of spr, less than 128 from overflow.
#
#: modes bare emulated
#: args --cpu spr --guest pmu.perf_caps=0x24c0
#: expect bare: pmc0 == 0xffffffffffa0
#: expect emulated: pmc0 == 0xffffffffff9c

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
        wrmsr_const IA32_A_PMC0, -100 & 0xffffffffffff
        wrmsr_const IA32_PEBS_ENABLE, 1
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
        jmp 1f
1:
        jmp 2f
2:
        jmp 3f
3:
        jmp 4f
4:
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        mov rsi, [rbx + 0x28]
        debug_exit 0
