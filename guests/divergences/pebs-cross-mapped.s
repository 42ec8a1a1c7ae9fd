# PEBS of instructions: perf has taken fixed counter 0 for them.
#
#: modes bare emulated
#: args --cpu icx --guest pmu.perf_caps=0x24c0
#: expect bare: rsi == 0x181060
#: expect emulated: rsi == 0x181000

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
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_EN
        wrmsr_const IA32_A_PMC0, -4 & 0xffffffffffff
        wrmsr_const IA32_PEBS_ENABLE, 1
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
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        mov rsi, [rbx + 0x28]
        debug_exit 0
