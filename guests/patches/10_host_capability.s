# The host has pinned every counter for itself, and the guest counts all the same: the PMU is its own while it
# runs. With a perf event behind each of its counters it would count nothing, and nobody would tell it.
#
#: modes passthrough
#: args --host-event branches:DH --host-event branches:DH --host-event branches:DH --host-event branches:DH
#: args --host-event branches:DH --host-event branches:DH --host-event branches:DH --host-event branches:DH
#: args --host-event instructions:DH
#: expect all: pmc0 == insns(open, closed)

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_EN
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
open:
        .rept 100
        nop
        .endr
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
closed:
        debug_exit 0
