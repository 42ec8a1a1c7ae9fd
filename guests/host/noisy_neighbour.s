# A noisy neighbour: somebody on the host takes every counter of core 0 for a while, and goes away.
#
# Nothing it does is out of the ordinary. A monitoring agent opens events for a whole CPU like this, and
# pins them because it does not want estimates. CPU-pinned events come before those of any task, and KVM's
# are events of a task: its pinned events find no counter and go to ERROR, the guest is told nothing.
#
# Eight branch events take the general-purpose counters; instructions, cycles, reference cycles and slots
# have fixed ones.
#
# Try: vpmu run guests/lessons/07_contention.s --vpmu emulated --host guests/host/noisy_neighbour.s
#
        .intel_syntax noprefix
        .include "linux.inc"
        .include "host.inc"

        .equ DELAY, 100000              # nanoseconds until it comes,
        .equ STAY, 300000               # and until it goes
        .equ BRANCHES, 8
        .equ EVENTS, BRANCHES + 4

        .text
        .globl _start
_start:
        sleep_ns DELAY
        xor ebx, ebx
1:      lea rdi, [rip + attrs]
        mov ecx, ebx
        sub ecx, BRANCHES - 1           # the first eight are the same
        jg 2f
        xor ecx, ecx
2:      imul ecx, ecx, sizeof_perf_event_attr
        add rdi, rcx
        mov rsi, ANY
        xor edx, edx
        mov r10, ANY
        xor r8d, r8d
        linux perf_event_open
        exit_if_error 1
        lea rcx, [rip + fds]
        mov [rcx + rbx * 4], eax
        inc ebx
        cmp ebx, EVENTS
        jb 1b

        sleep_ns STAY
        # Is the first one still counting? A pinned event in ERROR reads as end of file.
        lea rcx, [rip + fds]
        mov edi, [rcx]
        lea rsi, [rip + value]
        mov edx, 8
        linux read
        cmp eax, 8
        jne 4f

3:      dec ebx
        lea rcx, [rip + fds]
        mov edi, [rcx + rbx * 4]
        linux close
        test ebx, ebx
        jnz 3b
        mov rax, [rip + value]
        print_value "branches of core 0 meanwhile:"
        exit_program 0
4:      exit_program 2

        .data
        .balign 8
        .equ NOISY, PERF_ATTR_PINNED
attrs:  perf_attr PERF_TYPE_HARDWARE, PERF_COUNT_HW_BRANCH_INSTRUCTIONS, NOISY
        perf_attr PERF_TYPE_HARDWARE, PERF_COUNT_HW_INSTRUCTIONS, NOISY
        perf_attr PERF_TYPE_HARDWARE, PERF_COUNT_HW_CPU_CYCLES, NOISY
        perf_attr PERF_TYPE_HARDWARE, PERF_COUNT_HW_REF_CPU_CYCLES, NOISY
        perf_attr PERF_TYPE_RAW, 0x400, NOISY   # topdown slots
fds:    .zero EVENTS * 4
        .balign 8
value:  .quad 0

        host_storage
