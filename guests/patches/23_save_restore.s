# Two own the same counter: the guest has written it, a host event counts with it behind each exit. Neither
# sees the other's value.
#
#: modes passthrough
#: args --host-event branches:DH
#: expect all: r15 == MINE

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .equ MINE, 1234
        .text
        .globl _start
_start:
        wrmsr_const IA32_A_PMC0, MINE
        xor eax, eax
        cpuid
        rdmsr_rax IA32_A_PMC0
        mov r15, rax
        debug_exit 0
