# The VMM's CPUID says version 5; the guest asks for what version 4 has: IA32_PERF_GLOBAL_INUSE.
#
#: modes bare emulated
#: args --guest pmu.version=5 --guest pmu.fixed=4
#: expect bare: exit_code == 0
#: expect emulated: stop == "triple-fault"

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        mov ecx, IA32_PERF_GLOBAL_INUSE
        rdmsr
        debug_exit 0
