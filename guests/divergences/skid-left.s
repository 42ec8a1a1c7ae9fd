# PMIs are NMIs and come 1500 cycles late; the guest has been left before.
#
#: modes bare passthrough
#: args --pmi-skid 1500:0 --pmi-vector nmi
#: expect bare: pmc0 == 6010
#: expect passthrough: pmc0 == 6009

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
        wrmsr_const IA32_A_PMC0, -4 & 0xffffffffffff
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
        nop
        nop
        nop
        nop
        nop
        nop
        in al, 0x61
        in al, 0x61
        mov ecx, 3000
1:      dec ecx
        jnz 1b
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        debug_exit 0
pmi:    iretq
        idt_storage
        .text
