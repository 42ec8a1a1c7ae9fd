# What KVM supports of IA32_PERF_CAPABILITIES, as a VMM asks for it: with enable_passthrough_pmu neither branch
# records nor PEBS, full-width counters alone.
#
#: modes passthrough
#: guest ../lessons/01_count.s
#: cpu icx
#: expect all: printed("supported ") == 0x2000

        .intel_syntax noprefix
        .include "linux.inc"
        .include "host.inc"

        .text
        .globl _start
_start:
        mov edi, AT_FDCWD
        lea rsi, [rip + path]
        mov edx, O_RDWR
        linux openat
        exit_if_error 1
        mov r12d, eax
        must_ioctl r12d, KVM_GET_MSRS, msrs, 2
        mov rax, [rip + value]
        print_value "supported"
        exit_program 0

        .data
path:   .asciz "/dev/kvm"
        .balign 8
msrs:   .long 1, 0              # one entry
        .long 0x345, 0
value:  .quad 0

        host_storage
