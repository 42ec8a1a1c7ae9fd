# RDPMC of type 0x2000 passes with all others, and shows where slots went. A write to fixed counter 3 clears
# that too, so that patch 24 hides what is missing here: it is left out. Here all of it, on an older CPU.
#
#: modes passthrough
#: cpu icx
#: args --without 24 --host-event {slots,topdown-retiring,topdown-be-bound}:DH
#: expect all: r15 == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        xor eax, eax
        cpuid
        mov ecx, 0x20000000
        rdpmc
        mov r15d, eax
        debug_exit 0
