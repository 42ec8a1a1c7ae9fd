# A selector of AMD's K7, which Intel's processors do not have.
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
        mov ecx, 0xc0010000
        mov eax, 5
        xor edx, edx
        wrmsr
        debug_exit 0
