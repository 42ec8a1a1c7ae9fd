# A counter of branches starts at -1: the first branch should overflow it.
#
#: modes bare emulated
#: expect bare: r8 == work + 2
#: expect emulated: r8 == work + 4

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
        wrmsr_const IA32_A_PMC0, -1 & 0xffffffffffff
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
work:
        jmp 1f
1:
        jmp 2f
2:
        jmp 3f
3:
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        debug_exit 0
pmi:    mov r8, [rsp]
        iretq
        idt_storage
        .text
