# IA32_MISC_ENABLE as it is after RESET.
#
#: modes bare emulated
#: expect bare: rax == 2048
#: expect emulated: rax == 6144

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        rdmsr_rax IA32_MISC_ENABLE
        debug_exit 0
