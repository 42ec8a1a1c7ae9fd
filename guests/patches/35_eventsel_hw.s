# A selector whose event the filter denies is the guest's to read, and not in the hardware.
#
#: modes passthrough
#: args --filter deny.toml
#: expect all: pmc0 == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_EN
        wrmsr_const IA32_FIXED_CTR_CTRL, FIXED0_OS
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0 | GLOBAL_FIXED0
        .rept 20
        nop
        .endr
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        debug_exit 0
