# DEBUGCTL with bit 12, FREEZE_PERFMON_ON_PMI.
#
#: modes bare emulated
#: expect bare: exit_code == 0
#: expect emulated: stop == "triple-fault"

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        wrmsr_const IA32_DEBUGCTL, 1 << 12
        debug_exit 0
