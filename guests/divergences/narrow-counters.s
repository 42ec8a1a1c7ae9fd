# The VMM exposes counters of 40 bits; one gets a value beyond.
#
#: modes passthrough emulated
#: args --guest pmu.width=40
#: expect passthrough: exit_code == 0
#: expect emulated: stop == "triple-fault"

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        wrmsr_const IA32_A_PMC0, 1 << 40
        debug_exit 0
