# A fixed counter, masked.
#~ modes bare emulated passthrough mediated
#~ args --max-insns 20000
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .equ VEC, 0x50
        .equ COUNTS, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_INT | EVTSEL_EN
_start: lapic_enable_x2apic
        wrmsr_const IA32_FIXED_CTR0, -100 & 0xffffffffffff
        wrmsr_const IA32_FIXED_CTR_CTRL, 9
        load_idt
        set_gate VEC, pmi
        wrmsr_const IA32_PERFEVTSEL0, 0
        wrmsr_const IA32_PMC0, -100 & 0xffffffff
        sti
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 1 << 32
        1:      jmp 1b
pmi:    push rax
        push rcx
        push rdx
        inc ebx
        wrmsr_const IA32_PERF_GLOBAL_STATUS_RESET, GLOBAL_PMC0
        wrmsr_const IA32_PMC0, -100 & 0xffffffff
        lapic_eoi
        pop rdx
        pop rcx
        pop rax
        iretq
        idt_storage
#= max-insns at rip 0x1000b6 (pmi_fixed.s:18)
#= why: fixed0 has overflowed (GLOBAL_STATUS 0x100000000), but LVTPC 0x10000 is masked, as after a reset: nothing has set it up
