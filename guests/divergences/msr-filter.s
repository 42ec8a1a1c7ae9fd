# The VMM's MSR filter denies writes of IA32_PMC0.
#
#: modes bare emulated
#: args --msr-filter msr_filter.toml
#: expect bare: pmc0 == 5
#: expect emulated: stop == "triple-fault"

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        wrmsr_const IA32_PMC0, 5
        debug_exit 0
