# A second virtual machine on the same core: a VMM of its own, with a guest that is part of this file.
#
# Its guest counts a loop on counter 0, over and over, and sends each count out through a port. Two vCPUs
# now share one PMU: in mode emulated both have perf events, each scheduled in with its own task; in mode
# passthrough KVM gives the PMU to one guest and then to the other. Either way each guest counts exactly
# what it did itself, however often the other one comes in between.
#
#: guest ../lessons/07_contention.s
#: modes emulated
#: expect all: printed("exact counts of the second guest: ") == TIMES
#: expect all: exit_code == 0

        .intel_syntax noprefix
        .include "linux.inc"
        .include "host.inc"

        .equ MEMORY, 0x10000
        .equ CODE_AT, 0x1000
        .equ ROUNDS, 1000
        .equ TIMES, 20
        .equ PAUSE, 50000               # nanoseconds
        .equ CPUID_ROOM, 64
        .equ IA32_PMC0, 0xc1
        .equ IA32_PERFEVTSEL0, 0x186
        .equ IA32_PERF_GLOBAL_CTRL, 0x38f
        .equ COUNT_INSTRUCTIONS, 0x4300c0       # INST_RETIRED.ANY_P, USR OS EN
        .equ PORT, 0x10
        .equ EXPECTED, 2 * ROUNDS + 4           # the loop, and four around it: see lesson 1

        .text
        .globl _start
_start:
        mov edi, AT_FDCWD
        lea rsi, [rip + dev_kvm]
        mov edx, O_RDWR
        linux openat
        exit_if_error 1
        mov r12d, eax                   # /dev/kvm
        do_ioctl r12d, KVM_CREATE_VM
        exit_if_error 2
        mov r13d, eax                   # the VM
        do_ioctl r13d, KVM_CREATE_IRQCHIP
        exit_if_error 3

        xor edi, edi
        mov esi, MEMORY
        mov edx, PROT_READ | PROT_WRITE
        mov r10d, MAP_PRIVATE | MAP_ANONYMOUS
        mov r8, -1
        xor r9d, r9d
        linux mmap
        exit_if_error 4
        mov [rip + region + kvm_userspace_memory_region_userspace_addr], rax
        lea rdi, [rax + CODE_AT]
        lea rsi, [rip + guest]
        mov ecx, guest_end - guest
        rep movsb
        must_ioctl r13d, KVM_SET_USER_MEMORY_REGION, region, 5

        do_ioctl r13d, KVM_CREATE_VCPU
        exit_if_error 6
        mov r14d, eax                   # the vCPU
        do_ioctl r12d, KVM_GET_VCPU_MMAP_SIZE
        exit_if_error 7
        mov esi, eax
        xor edi, edi
        mov edx, PROT_READ | PROT_WRITE
        mov r10d, MAP_SHARED
        mov r8d, r14d
        xor r9d, r9d
        linux mmap
        exit_if_error 8
        mov rbx, rax                    # its struct kvm_run
        must_ioctl r12d, KVM_GET_SUPPORTED_CPUID, cpuid, 9
        must_ioctl r14d, KVM_SET_CPUID2, cpuid, 10

        must_ioctl r14d, KVM_GET_SREGS, sregs, 11
        long_mode sregs
        must_ioctl r14d, KVM_SET_SREGS, sregs, 12
        must_ioctl r14d, KVM_SET_REGS, regs, 13

        xor r15d, r15d                  # counts seen
run:    do_ioctl r14d, KVM_RUN
        cmp rax, -EINTR
        je run
        exit_if_error 14
        cmp dword ptr [rbx + kvm_run_exit_reason], KVM_EXIT_IO
        jne wrong
        mov rsi, [rbx + kvm_run_io_data_offset]
        mov eax, [rbx + rsi]
        cmp eax, EXPECTED
        jne differs
        sleep_ns PAUSE                  # the other guest's turn
        inc r15d
        cmp r15d, TIMES
        jb run
        mov eax, r15d
        print_value "exact counts of the second guest:"
        exit_program 0
wrong:  exit_program 15
differs:
        print_value "the second guest counted"
        exit_program 16

# What the guest runs; it needs no stack.
guest:
        mov ecx, IA32_PERF_GLOBAL_CTRL
        xor eax, eax
        xor edx, edx
        wrmsr
        mov ecx, IA32_PERFEVTSEL0
        mov eax, COUNT_INSTRUCTIONS
        wrmsr
1:      mov ecx, IA32_PMC0
        xor eax, eax
        wrmsr
        mov ecx, IA32_PERF_GLOBAL_CTRL
        mov eax, 1
        wrmsr
        mov esi, ROUNDS
2:      dec esi
        jnz 2b
        mov ecx, IA32_PERF_GLOBAL_CTRL
        xor eax, eax
        wrmsr
        mov ecx, IA32_PMC0
        rdmsr
        out PORT, eax
        jmp 1b
guest_end:

        .data
dev_kvm:
        .asciz "/dev/kvm"
        .balign 8
region: .long 0, 0                      # slot, flags
        .quad 0, MEMORY, 0              # guest-physical address, size, where it is here
regs:   .zero kvm_regs_rip
        .quad CODE_AT, 2
        .zero sizeof_kvm_regs - kvm_regs_rflags - 8
cpuid:  .long CPUID_ROOM, 0
        .zero CPUID_ROOM * sizeof_kvm_cpuid_entry2
sregs:  .zero sizeof_kvm_sregs

        host_storage
