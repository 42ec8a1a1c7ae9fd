# The second half of a live migration: a VMM that goes on from the guest in /tmp/vm, see save.s.
#
# It waits for /tmp/saved and for room: there are two VMs at most, and one is the VMM's.

        .intel_syntax noprefix
        .include "linux.inc"
        .include "host.inc"
        .include "migrate.inc"
        .include "small_vm.inc"

        .equ NAP, 20000                 # nanoseconds between two looks

        .text
        .globl _start
_start:
wait:   sleep_ns NAP
        mov edi, AT_FDCWD
        lea rsi, [rip + whole]
        xor edx, edx
        linux openat
        cmp rax, -ENOENT
        je wait
        exit_if_error 21
        sleep_ns NAP                    # the other VMM ends
        small_vm
        lea rdi, [rip + saved_vm]
        call restore_vm

run:    do_ioctl r14d, KVM_RUN
        cmp rax, -EINTR
        je run
        exit_if_error 22
        cmp dword ptr [rbx + kvm_run_exit_reason], KVM_EXIT_IO
        jne wrong
        mov rsi, [rbx + kvm_run_io_data_offset]
        mov eax, [rbx + rsi]
        print_value "count of the guest that moved:"
        exit_program 0
wrong:  exit_program 23

        small_vm_data
whole:  .asciz "/tmp/saved"
        migrate_data
        .text
        migrate_routines
        host_storage
