# VMCALL.
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
        mov eax, 99
        vmcall
        debug_exit 0
