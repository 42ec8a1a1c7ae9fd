# LBR_SELECT with a reserved bit.
#
#: modes bare emulated
#: args --cpu icx --guest pmu.perf_caps=0x2005
#: expect bare: stop == "triple-fault"
#: expect emulated: exit_code == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        wrmsr_const 0x1c8, 1 << 20
        debug_exit 0
