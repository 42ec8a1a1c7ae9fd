# Three overflows, three PMIs: the handler unmasks LVTPC each time, if UNMASK is 1.
#
#: modes bare emulated passthrough mediated
#: expect all: mem64(taken) == 3

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .ifndef UNMASK
        .equ UNMASK, 1
        .endif
        .equ TURNS, 3
        .equ PERIOD, 20
        .equ VECTOR, 0x40
        .equ COUNTER, 0xffffffffffff    # of 48 bits

        .text
        .globl _start
_start:
        load_idt
        set_gate VECTOR, pmi
        lapic_enable_x2apic
        wrmsr_const IA32_X2APIC_LVT_PMI, VECTOR
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_BR_INST_RETIRED_ALL_BRANCHES | EVTSEL_OS | EVTSEL_INT | EVTSEL_EN
        sti
        mov ebx, TURNS
turn:
        wrmsr_const IA32_A_PMC0, -PERIOD & COUNTER
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
        mov ecx, 2 * PERIOD
1:      dec ecx
        jnz 1b
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        dec ebx
        jnz turn
        debug_exit 0

pmi:
        push rax
        push rcx
        push rdx
        inc qword ptr [rip + taken]
        wrmsr_const IA32_PERF_GLOBAL_STATUS_RESET, GLOBAL_PMC0
        .if UNMASK
        wrmsr_const IA32_X2APIC_LVT_PMI, VECTOR
        .endif
        lapic_eoi
        pop rdx
        pop rcx
        pop rax
        iretq

        .data
        .balign 8
taken:  .quad 0
        idt_storage
