# The host locks up after a guest has run. The NMI watchdog's event has survived the guest, because it excludes
# guests: it finds the lockup.
#
#: modes passthrough
#: guest ../workloads/spin.s
#: args --watchdog nmi --watchdog-thresh 0.0002
#: expect all: log("hard LOCKUP on cpu 0") == 1
#: expect all: stop == "hard-lockup"

        .intel_syntax noprefix
        .include "linux.inc"
        .include "host.inc"

        .text
        .globl _start
_start:
        sleep_ns 20000
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

        host_storage
