# INT behind the forced emulation prefix, at CPL 0: the emulator has none.
#
#: modes bare emulated
#: expect bare: stop == "triple-fault"
#: expect emulated: stop == "shutdown"

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        FEP
        int 0x40
        debug_exit 0
