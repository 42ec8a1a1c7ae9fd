# The time in the record of the first branch behind an exit.
#
#: modes bare emulated
#: args --cpu icx --guest pmu.perf_caps=0x2005
#: expect bare: rax == 768
#: expect emulated: rax == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        wrmsr_const IA32_DEBUGCTL, 1
        jmp 1f
1:
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        nop
        in al, 0x61
        jmp 2f
2:
        wrmsr_const IA32_DEBUGCTL, 0
        mov ecx, 0xdc2
        rdmsr
        debug_exit 0
