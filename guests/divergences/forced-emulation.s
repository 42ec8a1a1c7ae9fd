# An instruction behind the forced emulation prefix.
#
#: modes bare emulated
#: expect bare: stop == "triple-fault"
#: expect emulated: exit_code == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        FEP
        nop
        debug_exit 0
