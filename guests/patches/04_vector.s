# The guest's overflow is the host's interrupt 0xf5. Without a vector of that number it is nobody's.
#
#: modes passthrough
#: expect all: log("vector 0xf5") == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .equ VECTOR, 0x40
        .equ COUNTER, (1 << 48) - 1
        .text
        .globl _start
_start:
        lapic_enable_x2apic
        load_idt
        set_gate VECTOR, pmi
        wrmsr_const IA32_X2APIC_LVT_PMI, VECTOR
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_INT | EVTSEL_EN
        wrmsr_const IA32_A_PMC0, -100 & COUNTER
        sti
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
        mov ebp, 1000
1:      dec ebp
        jnz 1b
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        cli
        debug_exit 0
pmi:
        inc r15d
        push rax
        push rcx
        push rdx
        lapic_eoi
        pop rdx
        pop rcx
        pop rax
        iretq

        .bss
        idt_storage
