# perf stat for the VMM: instructions, split by ring (:u :k) and by whether the guest ran (:G :H).
#
# Five events of one task in one group: they are on the hardware together or not at all, so that their
# counts belong to the same stretch of time and add up exactly. Each split adds up to the total:
# :u and :k by the ring of whatever ran, guest or host; :G and :H by who it was, whatever the ring.
#
#: guest ../lessons/07_contention.s
#: modes emulated passthrough
#: expect emulated: printed("instructions ") == printed("instructions:u ") + printed("instructions:k ")
#: expect emulated: printed("instructions ") == printed("instructions:G ") + printed("instructions:H ")
#: expect emulated: printed("instructions:G ") > 0
#: expect emulated: printed("running ") <= printed("enabled ")

        .intel_syntax noprefix
        .include "linux.inc"
        .include "host.inc"

        .equ TIME, 200000               # nanoseconds

        .text
        .globl _start
_start:
        perf_open total, VMM, ANY
        exit_if_error 1
        mov ebx, eax
        perf_open user, VMM, ANY, rbx
        exit_if_error 1
        perf_open kernel, VMM, ANY, rbx
        exit_if_error 1
        perf_open guest, VMM, ANY, rbx
        exit_if_error 1
        perf_open host, VMM, ANY, rbx
        exit_if_error 1
        do_ioctl ebx, PERF_EVENT_IOC_ENABLE, PERF_IOC_FLAG_GROUP
        exit_if_error 2
        sleep_ns TIME
        do_ioctl ebx, PERF_EVENT_IOC_DISABLE, PERF_IOC_FLAG_GROUP
        exit_if_error 2
        # u64 nr, time_enabled, time_running, then the counts, the leader's first
        read_into counts, ebx, 64
        cmp eax, 64
        jne failed
        mov rax, [rip + counts + 8]
        print_value "enabled"
        mov rax, [rip + counts + 16]
        print_value "running"
        mov rax, [rip + counts + 24]
        print_value "instructions"
        mov rax, [rip + counts + 32]
        print_value "instructions:u"
        mov rax, [rip + counts + 40]
        print_value "instructions:k"
        mov rax, [rip + counts + 48]
        print_value "instructions:G"
        mov rax, [rip + counts + 56]
        print_value "instructions:H"
        exit_program 0
failed: exit_program 3

        .data
        .balign 8
        .equ TIMES, PERF_FORMAT_TOTAL_TIME_ENABLED | PERF_FORMAT_TOTAL_TIME_RUNNING
        .equ FORMAT, PERF_FORMAT_GROUP | TIMES
total:  perf_attr PERF_TYPE_HARDWARE, PERF_COUNT_HW_INSTRUCTIONS, PERF_ATTR_DISABLED, FORMAT
user:   perf_attr PERF_TYPE_HARDWARE, PERF_COUNT_HW_INSTRUCTIONS, PERF_ATTR_EXCLUDE_KERNEL, FORMAT
kernel: perf_attr PERF_TYPE_HARDWARE, PERF_COUNT_HW_INSTRUCTIONS, PERF_ATTR_EXCLUDE_USER, FORMAT
guest:  perf_attr PERF_TYPE_HARDWARE, PERF_COUNT_HW_INSTRUCTIONS, PERF_ATTR_EXCLUDE_HOST, FORMAT
host:   perf_attr PERF_TYPE_HARDWARE, PERF_COUNT_HW_INSTRUCTIONS, PERF_ATTR_EXCLUDE_GUEST, FORMAT
        .balign 8
counts: .zero 64

        host_storage
