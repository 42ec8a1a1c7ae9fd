# A guest that never touches its PMU exits a few times: a switch writes ten MSRs and LVTPC, there and back.
#
#: modes mediated
#: expect all: work.wrmsr.count == 12 * kvm.loads

        .intel_syntax noprefix
        .include "macros.inc"

        .text
        .globl _start
_start:
        .rept 5
        in al, 0x61
        .endr
        debug_exit 0
