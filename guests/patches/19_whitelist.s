# KVM has a list of the MSRs that may pass, and warns of any other.
#
#: modes passthrough
#: expect all: log("Invalid MSR") == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        debug_exit 0
