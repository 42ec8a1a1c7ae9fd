# A pinned event of the host has the branch records.
#
#: modes bare emulated
#: args --cpu icx --guest pmu.perf_caps=0x2005 --host-event r1b00:D
#: expect bare: rsi == 5
#: expect emulated: rsi == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        wrmsr_const 0x680, 5
        mov ecx, 0x680
        rdmsr
        mov rsi, rax
        debug_exit 0
