# The guest has three fixed counters, the silicon four, and RDPMC passes. What the host counts with the fourth
# one is not for the guest.
#
#: modes passthrough
#: cpu spr
#: args --host-event slots:DH
#: expect all: r15 == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        xor eax, eax
        cpuid
        rdpmc_rax RDPMC_FIXED + 3
        mov r15, rax
        debug_exit 0
