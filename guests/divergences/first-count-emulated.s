# The WRMSR that opens is the first thing that counts, and it wraps the counter.
#
#: modes bare emulated
#: expect bare: pmc0 == 7
#: expect emulated: pmc0 == 5

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
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_EN | EVTSEL_INT
        wrmsr_const IA32_A_PMC0, -1 & 0xffffffffffff
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
work:
        nop
        nop
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        debug_exit 0
pmi:    mov r8, [rsp]
        iretq
        idt_storage
        .text
