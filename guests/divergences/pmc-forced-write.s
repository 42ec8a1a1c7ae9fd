# IA32_PMC0 is written behind the forced emulation prefix.
#
#: modes emulated passthrough
#: expect emulated: exit_code == 0
#: expect passthrough: stop == "triple-fault"

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        mov ecx, IA32_PMC0
        mov eax, 5
        xor edx, edx
        FEP
        wrmsr
        debug_exit 0
