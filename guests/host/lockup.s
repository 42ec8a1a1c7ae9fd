# The host locks up: a task has the kernel of its core spin with interrupts off, for ever.
#
# Writing HARDLOCKUP to the file of lkdtm is how kernel people do it. The core goes on counting cycles and
# takes NMIs, but no timer and no other interrupt. Who notices depends on --watchdog: with `nmi` the core
# itself, with `buddy` the core before it, with `hpet` the core itself, with `off` nobody: then the run
# ends because nothing can happen any more. (The threshold is short here: 10 s of simulated time are long.)
#
# The program goes to the second core if there is one, so that a buddy has somebody to watch.
#
#: guest ../lessons/01_count.s
#: modes emulated
#: args --watchdog hpet --watchdog-thresh 0.0002
#: expect all: stop == "hard-lockup"

        .intel_syntax noprefix
        .include "linux.inc"
        .include "host.inc"

        .text
        .globl _start
_start:
        set_affinity 0, second_core     # fails on one core: it stays where it is
        mov edi, AT_FDCWD
        lea rsi, [rip + path]
        mov edx, O_WRONLY
        linux openat
        exit_if_error 1
        mov edi, eax
        lea rsi, [rip + how]
        mov edx, how_end - how
        linux write
        exit_program 2                  # nobody gets here

        .data
path:   .asciz "/sys/kernel/debug/provoke-crash/DIRECT"
how:    .ascii "HARDLOCKUP"
how_end:
        .balign 8
second_core:
        .quad 2

        host_storage
