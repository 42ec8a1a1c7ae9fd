# The first access opens a window, under the GLOBAL_CTRL of RESET.
#
#: modes passthrough
#: args --all-passthrough
#: expect passthrough: pmc0 == 5

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_EN
        nop
        wrmsr_const IA32_PERFEVTSEL0, 0
        debug_exit 0
