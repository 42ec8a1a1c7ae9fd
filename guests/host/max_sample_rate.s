# The administrator's limit: no event may sample more often than 20,000 times a second.
#
# perf counts the overflows of each event within a tick of 4 ms. One that has its share, here 80,
# is stopped until the next tick. The guest beside this program asks for 200,000 PMIs a second; its event
# on the host is throttled, over and over, and the guest is not told. (It does not stay so until the tick:
# every overflow of a guest's counter makes KVM reprogram it, which schedules the event in again.)
#
# Without this program the limit is 100,000, and an emulated vPMU is too slow to reach it.
#
#: guest ../workloads/pmi_200khz.s
#: modes emulated
#: expect all: printed("samples a second, now ") == RATE
#: expect all: perf.max_sample_rate == RATE
#: expect all: perf.throttles >= 3
#: expect all: pmis == 800
#: expect all: exit_code == 0

        .intel_syntax noprefix
        .include "linux.inc"
        .include "host.inc"

        .equ RATE, 20000
        .equ ROOM, 16

        .text
        .globl _start
_start:
        mov edi, AT_FDCWD
        lea rsi, [rip + path]
        mov edx, O_RDWR
        linux openat
        exit_if_error 1
        mov ebx, eax
        mov edi, ebx
        lea rsi, [rip + rate]
        mov edx, rate_end - rate
        linux write
        exit_if_error 2
        # It is a number of the kernel's now: read it back.
        mov edi, ebx
        xor esi, esi
        xor edx, edx
        linux lseek
        exit_if_error 3
        read_into answer, ebx, ROOM
        exit_if_error 4
        print "samples a second, now "
        lea rsi, [rip + answer]
        call host_print
        exit_program 0

        .data
path:   .asciz "/proc/sys/kernel/perf_event_max_sample_rate"
rate:   .ascii "20000\n"
rate_end:
        .bss
answer: .zero ROOM + 1

        host_storage
