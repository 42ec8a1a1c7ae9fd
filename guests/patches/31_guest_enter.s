# A host event that excludes guests counts what the host does and nothing else, although the guest writes the
# same counter.
#
#: modes passthrough
#: args --host-event branches:DH
#: expect all: counted("branches:DH") < GUESTS

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .equ GUESTS, 1 << 40
        .text
        .globl _start
_start:
        mov ebp, 10
1:      wrmsr_const IA32_A_PMC0, GUESTS
        xor eax, eax
        cpuid
        dec ebp
        jnz 1b
        debug_exit 0
