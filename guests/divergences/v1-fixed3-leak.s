# RDPMC of the fourth fixed counter, where the host counts slots.
#
#: modes passthrough
#: args --host-event slots:DH
#: expect passthrough: rax == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        rdpmc_rax RDPMC_FIXED + 3
        debug_exit 0
