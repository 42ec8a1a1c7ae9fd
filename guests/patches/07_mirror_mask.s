# A guest whose LVTPC is masked is not to be told of its overflows: none of them interrupts anybody.
#
#: modes passthrough
#: expect all: pmis_hw == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .equ COUNTER, (1 << 48) - 1
        .text
        .globl _start
_start:
        lapic_enable_x2apic
        wrmsr_const IA32_X2APIC_LVT_PMI, 0x10040
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_INT | EVTSEL_EN
        wrmsr_const IA32_A_PMC0, -100 & COUNTER
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
        mov ebp, 1000
1:      dec ebp
        jnz 1b
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        debug_exit 0
