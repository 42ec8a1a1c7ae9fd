# The version of the local APIC.
#
#: modes bare emulated
#: expect bare: rax == 0x60000
#: expect emulated: rax == 0x50000

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        lapic_enable_x2apic
        rdmsr_rax 0x803
        debug_exit 0
