# A program of the host, on the second core, wants an event for all that the first one does, which has given its
# PMU to a guest: EBUSY, for perf_event_alloc() looks at that core's flag.
#
#: modes passthrough
#: guest ../workloads/spin.s
#: args --cores 2 --max-cycles 200000
#: expect all: printed("errno ") == 16
#: expect all: stop == "max-cycles"

        .intel_syntax noprefix
        .include "linux.inc"
        .include "host.inc"

        .text
        .globl _start
_start:
        set_affinity 0, second_core
        sleep_ns 10000                  # the guest runs by now
        perf_open attr, ANY, 0
        neg eax
        print_value "errno"
        exit_program 0

        .data
        .balign 8
second_core:
        .quad 2
attr:   perf_attr PERF_TYPE_HARDWARE, PERF_COUNT_HW_INSTRUCTIONS, 0

        host_storage
