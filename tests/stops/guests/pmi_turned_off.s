# The handler turns the counter off, and leaves it so.
#~ modes bare emulated
#~ args --max-insns 20000
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .equ VEC, 0x50
        .equ COUNTS, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_INT | EVTSEL_EN
_start: lapic_enable_x2apic
        wrmsr_const IA32_X2APIC_LVT_PMI, VEC
        load_idt
        set_gate VEC, pmi
        wrmsr_const IA32_PERFEVTSEL0, COUNTS
        wrmsr_const IA32_PMC0, -100 & 0xffffffff
        sti
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
        1:      jmp 1b
pmi:    push rax
        push rcx
        push rdx
        inc ebx
        wrmsr_const IA32_PERF_GLOBAL_STATUS_RESET, GLOBAL_PMC0
        wrmsr_const IA32_PMC0, -100 & 0xffffffff
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_X2APIC_LVT_PMI, VEC
        lapic_eoi
        pop rdx
        pop rcx
        pop rax
        iretq
        idt_storage
#= max-insns at rip 0x1000a5 (pmi_turned_off.s:17)
#= why: pmc0 is set to interrupt and has not overflowed: GLOBAL_CTRL 0x0 has it off
