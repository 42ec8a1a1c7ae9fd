# LVTPC: while it is masked no PMI comes, then or later, and delivering one masks it.
#
# Four overflows. The first finds LVTPC masked: GLOBAL_STATUS shows it, and unmasking later brings nothing. The
# second is delivered, and the handler finds the mask bit set. It leaves it set, so the third is lost, too.
# For the fourth the guest has unmasked it again.
#
#: row X-pmi-masked
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: mem64(taken) == 0
#: expect all: mem64(taken + 8) == 1
#: expect all: mem64(taken + 16) == 1
#: expect all: mem64(taken + 24) == 2
#: expect all: pmis == 2
#: expect all: mem64(status) == GLOBAL_PMC0
#: expect all: mem64(status + 8) == GLOBAL_PMC0
#: expect all: mem64(status + 16) == GLOBAL_PMC0
#: expect all: mem64(status + 24) == GLOBAL_PMC0
#: expect all: mem64(entry) == LVT_MASK + PMI_VECTOR

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ LVT_MASK, 1 << 16

        # An overflow of counter 0; then how often the handler has run, and GLOBAL_STATUS, are kept.
        .macro overflow
        wrmsr_const IA32_PMC0, -4 & 0xffffffff
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
        .rept 8
        nop
        .endr
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        rdmsr_rax IA32_PERF_GLOBAL_STATUS
        mov [r12 + (status - taken)], rax
        wrmsr_const IA32_PERF_GLOBAL_STATUS_RESET, GLOBAL_PMC0
        .endm

        .macro keep
        nop
        mov [r12], rbx
        add r12, 8
        .endm

        .text
        .globl _start
_start:
        safe_setup
        lapic_enable_x2apic
        set_gate PMI_VECTOR, handler
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_INT | EVTSEL_EN
        lea r12, [rip + taken]
        xor ebx, ebx
        sti
        wrmsr_const IA32_X2APIC_LVT_PMI, LVT_MASK | PMI_VECTOR
        overflow
        wrmsr_const IA32_X2APIC_LVT_PMI, PMI_VECTOR
        keep
        overflow
        keep
        overflow
        wrmsr_const IA32_X2APIC_LVT_PMI, PMI_VECTOR
        keep
        overflow
        keep
        cli
        debug_exit 0

handler:
        push rax
        push rcx
        push rdx
        inc ebx
        rdmsr_rax IA32_X2APIC_LVT_PMI
        mov [rip + entry], rax
        lapic_eoi
        pop rdx
        pop rcx
        pop rax
        iretq

        .bss
        .balign 8
taken:  .zero 32
status: .zero 32
entry:  .zero 8
        conformance_kit
