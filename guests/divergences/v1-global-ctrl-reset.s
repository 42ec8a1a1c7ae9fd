# GLOBAL_CTRL as it is after reset.
#
#: modes passthrough
#: expect passthrough: rsi == 255

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        rdmsr_rax IA32_PERF_GLOBAL_CTRL
        mov rsi, rax
        debug_exit 0
