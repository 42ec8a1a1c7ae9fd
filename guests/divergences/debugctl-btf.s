# DEBUGCTL.BTF is written and read back.
#
#: modes bare emulated
#: expect bare: rsi == 2
#: expect emulated: rsi == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        wrmsr_const IA32_DEBUGCTL, 2
        rdmsr_rax IA32_DEBUGCTL
        mov rsi, rax
        debug_exit 0
