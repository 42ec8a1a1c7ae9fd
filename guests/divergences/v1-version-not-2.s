# A guest whose PMU is of version 1 counts.
#
#: modes passthrough
#: args --guest pmu.version=1
#: expect passthrough: pmc0 == 10

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_EN
        nop
        nop
        nop
        nop
        nop
        in al, 0x61
        wrmsr_const IA32_PERFEVTSEL0, 0
        debug_exit 0
