# Behind the inner run loop nothing of the guest is left in the hardware.
#
#: modes passthrough
#: expect all: hw.pmc1 == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        wrmsr_const IA32_A_PMC1, 77
        debug_exit 0
