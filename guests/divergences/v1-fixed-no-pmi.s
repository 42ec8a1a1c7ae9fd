# CPUID overflows fixed counter 0.
#
#: modes passthrough
#: expect passthrough: pmis == 1

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
        sti
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_FIXED_CTR_CTRL, FIXED0_OS | FIXED0_PMI
        wrmsr_const IA32_FIXED_CTR0, -4 & 0xffffffffffff
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_FIXED0
        xor eax, eax
        nop
        nop
        cpuid
        nop
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        debug_exit 0
pmi:    iretq
        idt_storage
        .text
