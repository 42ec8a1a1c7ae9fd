# A program of the host that kills the VMM, and then waits for nobody.
        .intel_syntax noprefix
        .include "linux.inc"
        .include "host.inc"
        .globl _start
_start: mov edi, 1
        mov esi, SIGKILL
        linux kill
        lea rdi, [rip + never]          # no signal is in this set
        xor esi, esi
        xor edx, edx                    # for ever
        mov r10d, 8
        linux rt_sigtimedwait
        exit_program 0
        .data
        .balign 8
never:  .quad 0
