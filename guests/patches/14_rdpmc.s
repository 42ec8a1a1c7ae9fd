# RDPMC is silicon's: it has no counter 0x10000. An RDPMC that exits finds a clock of VMware's there.
#
#: modes passthrough
#: expect all: r15 == GENERAL_PROTECTION

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"
        .text
        .globl _start
_start:
        safe_setup
        rdpmc_safe 0x10000
        mov r15, r9
        debug_exit 0

        conformance_kit
