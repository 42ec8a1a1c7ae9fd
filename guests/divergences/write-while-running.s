# A counter of branches gets another value in its window.
#
#: modes bare emulated
#: expect bare: r8 == work + 8
#: expect emulated: r8 == work + 18

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        load_idt
        set_gate 2, pmi
        set_gate 0x40, pmi
        lapic_enable_x2apic
        wrmsr_const IA32_X2APIC_LVT_PMI, LVT_NMI
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_BR_INST_RETIRED_ALL_BRANCHES | EVTSEL_OS | EVTSEL_EN | EVTSEL_INT
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
        jmp 1f
1:
        jmp 2f
2:
        jmp 3f
3:
        jmp 4f
4:
        jmp 5f
5:
        wrmsr_const IA32_A_PMC0, -4 & 0xffffffffffff
work:
        jmp a0
a0:
        jmp a1
a1:
        jmp a2
a2:
        jmp a3
a3:
        jmp a4
a4:
        jmp a5
a5:
        jmp a6
a6:
        jmp a7
a7:
        jmp a8
a8:
        jmp a9
a9:
        jmp a10
a10:
        jmp a11
a11:
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        debug_exit 0
pmi:    mov r8, [rsp]
        iretq
        idt_storage
        .text
