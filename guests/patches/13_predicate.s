# A fixed counter that passes is as wide as in silicon: more is #GP. KVM looks at nothing and drops the rest.
#
#: modes passthrough
#: expect all: r15 == GENERAL_PROTECTION

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"
        .text
        .globl _start
_start:
        safe_setup
        mov rax, 1 << 50
        wrmsr_safe IA32_FIXED_CTR0
        mov r15, r9
        debug_exit 0

        conformance_kit
