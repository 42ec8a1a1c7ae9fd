# A guest without full-width counters has no IA32_A_PMC0, although the silicon has.
#
#: modes passthrough
#: args --guest pmu.perf_caps=0
#: expect all: r15 == GENERAL_PROTECTION

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"
        .text
        .globl _start
_start:
        safe_setup
        mov eax, 5
        wrmsr_safe IA32_A_PMC0
        mov r15, r9
        debug_exit 0

        conformance_kit
