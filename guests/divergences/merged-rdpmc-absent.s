# RDPMC of the fourth fixed counter, which CPUID does not show.
#
#: modes bare mediated
#: expect bare: exit_code == 0
#: expect mediated: stop == "triple-fault"

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        rdpmc_rax RDPMC_FIXED + 3
        debug_exit 0
