# A host event that excludes guests goes on after every exit: the host's events come back with the PMU. Where
# nothing is switched, VM exit leaves GLOBAL_CTRL at 0, and no event of the host counts any more.
#
#: modes passthrough
#: args --host-event cycles:DH
#: expect all: counted("cycles:DH") > 100 * EXITS

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .equ EXITS, 50
        .text
        .globl _start
_start:
        mov ebp, EXITS
1:      xor eax, eax
        cpuid
        dec ebp
        jnz 1b
        debug_exit 0
