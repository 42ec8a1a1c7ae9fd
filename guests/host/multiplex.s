# Twelve events on eight counters: perf rotates them, and what it shows is an estimate.
#
# All are branches, which only general-purpose counters can count. Every 4 ms the list of the flexible
# events is turned by one. Each event counts for two thirds of the time; count * enabled / running
# estimates what it would have counted all the time. All twelve have been enabled equally long, and the
# times that they were on a counter add up to eight times that.
#
#: guest ../workloads/spin.s
#: modes emulated
#: expect all: printed("branches ") > 0
#: expect all: printed("running ") < printed("enabled ")
# Two thirds, but for what an edge of a turn costs.
#: expect all: printed("running ") * 100 >= printed("enabled ") * 64
#: expect all: printed("running ") * 100 <= printed("enabled ") * 70
#: expect all: exit_code == 0

        .intel_syntax noprefix
        .include "linux.inc"
        .include "host.inc"

        .equ EVENTS, 12
        .equ TIME, 48000000             # nanoseconds: twelve turns

        .text
        .globl _start
_start:
        xor ebx, ebx
1:      perf_open attr, VMM, ANY
        exit_if_error 1
        lea rcx, [rip + fds]
        mov [rcx + rbx * 4], eax
        inc ebx
        cmp ebx, EVENTS
        jb 1b
        sleep_ns TIME
        xor ebx, ebx
2:      lea rcx, [rip + fds]
        mov r12d, [rcx + rbx * 4]
        read_into counts, r12d, 24
        cmp eax, 24
        jne failed
        mov rax, [rip + counts]
        print_value "branches"
        mov rax, [rip + counts + 8]
        print_value "enabled"
        mov rax, [rip + counts + 16]
        print_value "running"
        mov rax, [rip + counts]
        mul qword ptr [rip + counts + 8]
        mov rcx, [rip + counts + 16]
        test rcx, rcx
        jz 3f
        div rcx
        print_value "scaled"
3:      inc ebx
        cmp ebx, EVENTS
        jb 2b
        exit_program 0
failed: exit_program 3

        .data
        .balign 8
        .equ TIMES, PERF_FORMAT_TOTAL_TIME_ENABLED | PERF_FORMAT_TOTAL_TIME_RUNNING
attr:   perf_attr PERF_TYPE_HARDWARE, PERF_COUNT_HW_BRANCH_INSTRUCTIONS, 0, TIMES
        .balign 8
counts: .zero 24
fds:    .zero EVENTS * 4

        host_storage
