# KVM reads a selector before silicon does: bit 21, which counts for a neighbour thread too, is not for guests.
#
#: modes passthrough
#: cpu skx
#: expect all: r15 == GENERAL_PROTECTION

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"
        .text
        .globl _start
_start:
        safe_setup
        mov eax, EVTSEL_ANY
        wrmsr_safe IA32_PERFEVTSEL0
        mov r15, r9
        debug_exit 0

        conformance_kit
