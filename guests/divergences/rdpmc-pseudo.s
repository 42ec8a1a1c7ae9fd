# RDPMC of VMware's first pseudo counter.
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
        rdpmc_rax 0x10000
        debug_exit 0
