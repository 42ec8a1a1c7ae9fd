# A counter of branches starts at -1: its PMI comes behind the first branch.
#
#: modes bare passthrough mediated
#: expect all: r8 == second

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .equ COUNTER, 0xffffffffffff    # of 48 bits

        .text
        .globl _start
_start:
        load_idt
        set_gate 2, pmi
        lapic_enable_x2apic
        wrmsr_const IA32_X2APIC_LVT_PMI, LVT_NMI
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_BR_INST_RETIRED_ALL_BRANCHES | EVTSEL_OS | EVTSEL_INT | EVTSEL_EN
        wrmsr_const IA32_A_PMC0, -1 & COUNTER
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
        jmp second
second:
        jmp third
third:
        jmp last
last:
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        debug_exit 0

pmi:
        mov r8, [rsp]                   # where it was taken
        iretq
        idt_storage
