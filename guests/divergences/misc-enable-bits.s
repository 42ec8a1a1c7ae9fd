# IA32_MISC_ENABLE with other bits 11 and 12.
#
#: modes bare emulated
#: expect bare: exit_code == 0
#: expect emulated: stop == "triple-fault"

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        mov ecx, IA32_MISC_ENABLE
        mov eax, 1
        xor edx, edx
        wrmsr
        debug_exit 0
