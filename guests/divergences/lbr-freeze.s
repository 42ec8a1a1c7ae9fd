# Branch records freeze at a PMI: STATUS.LBR_FRZ from version 4 on, DEBUGCTL.LBR before.
#
#: modes bare emulated
#: args --cpu icx --guest pmu.perf_caps=0x2005
#: expect bare: global_status == 0x400000000000001
#: expect emulated: global_status == 1

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
        wrmsr_const IA32_X2APIC_LVT_PMI, 0x40
        wrmsr_const IA32_DEBUGCTL, 0x801
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_BR_INST_RETIRED_ALL_BRANCHES | EVTSEL_OS | EVTSEL_EN | EVTSEL_INT
        wrmsr_const IA32_A_PMC0, -3 & 0xffffffffffff
        sti
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
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        debug_exit 0
pmi:    rdmsr_rax IA32_DEBUGCTL
        iretq
        idt_storage
        .text
