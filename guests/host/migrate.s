# The vCPU's thread moves: from one core of the host to the other, and back, ten times.
#
# KVM puts the vCPU at the old core and loads it at the new one: its perf events, or in mode passthrough
# its PMU context, go with it. A guest must not see any of it in its counters.
#
#: guest ../lessons/07_contention.s
#: modes emulated
#: args --cores 2
#: expect all: printed("moves ") == MOVES
#: expect all: exit_code == 0

        .intel_syntax noprefix
        .include "linux.inc"
        .include "host.inc"

        .equ MOVES, 10
        .equ TIME, 20000                # nanoseconds between two

        .text
        .globl _start
_start:
        xor ebx, ebx
again:  sleep_ns TIME
        xor byte ptr [rip + mask], 3    # core 0 is bit 0: 2, 1, 2 …
        set_affinity VMM, mask
        exit_if_error 1                 # EINVAL: there is one core only
        inc ebx
        cmp ebx, MOVES
        jb again
        mov eax, ebx
        print_value "moves"
        exit_program 0

        .data
        .balign 8
mask:   .quad 1

        host_storage
