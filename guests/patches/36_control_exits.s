# The same of FIXED_CTR_CTRL: its AnyThread bits are not for guests.
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
        mov eax, 4
        wrmsr_safe IA32_FIXED_CTR_CTRL
        mov r15, r9
        debug_exit 0

        conformance_kit
