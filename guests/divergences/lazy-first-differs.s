# The first access is RDPMC of a counter that CPUID does not show.
#
#: modes passthrough
#: args --all-passthrough --guest pmu.gp=2
#: expect passthrough: exit_code == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        mov ecx, 5
        rdpmc
        debug_exit 0
