# A guest with branch records, which patch 11 takes from guests that own the PMU: so it is left out. What VM
# entry does for records of such a guest can only fail, and the kernel says so.
#
#: modes passthrough
#: cpu icx
#: args --without 11 --guest pmu.perf_caps=0x2005
#: expect all: log("fail to passthrough LBR") == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        wrmsr_const IA32_DEBUGCTL, DEBUGCTL_LBR
        xor eax, eax
        cpuid
        debug_exit 0
