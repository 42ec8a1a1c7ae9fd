# After reset every general-purpose counter is on in GLOBAL_CTRL, and VM entry loads that.
#
#: modes passthrough
#: cpu spr
#: expect all: r15 == 0xff

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        rdmsr_rax IA32_PERF_GLOBAL_CTRL
        mov r15, rax
        debug_exit 0
