# HLT itself is the event that wraps the counter, with interrupts on.
#
#: modes bare passthrough
#: expect bare: exit_code == 0
#: expect passthrough: stop == "halted"

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        lapic_enable_x2apic
        load_idt
        set_gate 0x40, pmi
        wrmsr_const IA32_X2APIC_LVT_PMI, 0x40
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_INT | EVTSEL_EN
        wrmsr_const IA32_A_PMC0, -5 & 0xffffffffffff
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
        nop
        nop
        nop
        sti
        hlt
        cli
        debug_exit 0
pmi:    wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERF_GLOBAL_STATUS_RESET, GLOBAL_PMC0
        lapic_eoi
        iretq
        idt_storage
        .text
