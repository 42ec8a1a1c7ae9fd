# Fixed counter 0 is denied; the guest changes the field of fixed counter 1.
#
#: modes mediated
#: args --filter deny.toml
#: expect mediated: fixed0 == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_FIXED0
        wrmsr_const IA32_FIXED_CTR_CTRL, FIXED0_OS
        wrmsr_const IA32_FIXED_CTR_CTRL, FIXED0_OS | FIXED1_OS
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        debug_exit 0
