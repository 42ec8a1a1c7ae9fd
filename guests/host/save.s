# The first half of a live migration: a VMM that saves its guest to /tmp/vm while that is counting.
#
#     vpmu run guests/lessons/06_sampling.s --vpmu emulated --host guests/host/save.s --host guests/host/restore.s
#
# Its guest counts a loop on counter 0 and would send the count out through a port. Before it gets there a
# second thread sends the first one SIGUSR1, which is blocked but in KVM_RUN: it comes back with EINTR, and the
# VM is saved by the ioctls that QEMU uses, too. /tmp/saved says that the file is whole. With --host restore.s
# behind it the guest goes on there, and its count is exact.
#
#: guest ../lessons/06_sampling.s
#: modes emulated passthrough mediated
#: expect all: printed("saved: ") == 1
#: expect all: exit_code == 0

        .intel_syntax noprefix
        .include "linux.inc"
        .include "host.inc"
        .include "migrate.inc"
        .include "small_vm.inc"

        .equ NAP, 5000                  # nanoseconds until the signal
        .equ CPUID_ROOM, 64
        .equ THREAD_STACK, 4096
        .equ IA32_PMC0, 0xc1
        .equ IA32_PERFEVTSEL0, 0x186
        .equ IA32_PERF_GLOBAL_CTRL, 0x38f
        .equ COUNT_INSTRUCTIONS, 0x4300c0       # INST_RETIRED.ANY_P, USR OS EN

        .text
        .globl _start
_start:
        small_vm
        lea rdi, [rbp + CODE_AT]
        lea rsi, [rip + guest]
        mov ecx, guest_end - guest
        rep movsb
        must_ioctl r12d, KVM_GET_SUPPORTED_CPUID, cpuid, 10
        must_ioctl r14d, KVM_SET_CPUID2, cpuid, 10
        must_ioctl r14d, KVM_GET_SREGS, sregs, 11
        long_mode sregs
        must_ioctl r14d, KVM_SET_SREGS, sregs, 12
        must_ioctl r14d, KVM_SET_REGS, regs, 13

        mov edi, SIG_BLOCK
        lea rsi, [rip + the_signal]
        xor edx, edx
        mov r10d, SIGSET
        linux rt_sigprocmask
        exit_if_error 14
        linux getpid
        mov r15d, eax                   # of the thread too
        mov edi, CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM
        lea rsi, [rip + stack + THREAD_STACK]
        xor edx, edx
        xor r10d, r10d
        xor r8d, r8d
        linux clone
        exit_if_error 15
        jz waker

run:    do_ioctl r14d, KVM_RUN
        cmp rax, -EINTR
        je interrupted
        exit_program 16                 # the guest was too fast
# The signal is still there. The second KVM_RUN does what the last exit has left as a request, and is back.
interrupted:
        xor byte ptr [rip + again], 1
        jnz run
        lea rdi, [rip + saved_vm]
        call save_vm
        mov eax, 1
        print_value "saved:"
        mov edi, AT_FDCWD
        lea rsi, [rip + whole]
        mov edx, O_WRONLY | O_CREAT
        mov r10d, 0x180
        linux openat
        exit_if_error 17
        exit_program 0

waker:  sleep_ns NAP
        mov edi, r15d
        mov esi, r15d
        mov edx, SIGUSR1
        linux tgkill
1:      sleep_ns 1000000000
        jmp 1b

# What the guest runs; it needs no stack.
guest:
        mov ecx, IA32_PERF_GLOBAL_CTRL
        xor eax, eax
        xor edx, edx
        wrmsr
        mov ecx, IA32_PERFEVTSEL0
        mov eax, COUNT_INSTRUCTIONS
        wrmsr
        mov ecx, IA32_PMC0
        xor eax, eax
        wrmsr
        mov ecx, IA32_PERF_GLOBAL_CTRL
        mov eax, 1
        wrmsr
        mov esi, ROUNDS
1:      dec esi
        jnz 1b
        mov ecx, IA32_PERF_GLOBAL_CTRL
        xor eax, eax
        wrmsr
        mov ecx, IA32_PMC0
        rdmsr
        out PORT, eax
        hlt
guest_end:

        small_vm_data
regs:   .zero kvm_regs_rip
        .quad CODE_AT, 2
        .zero sizeof_kvm_regs - kvm_regs_rflags - 8
cpuid:  .long CPUID_ROOM, 0
        .zero CPUID_ROOM * sizeof_kvm_cpuid_entry2
sregs:  .zero sizeof_kvm_sregs
the_signal:
        .quad 1 << (SIGUSR1 - 1)
again:  .byte 0
whole:  .asciz "/tmp/saved"
        .bss
stack:  .zero THREAD_STACK
        migrate_data
        .text
        migrate_routines
        host_storage
