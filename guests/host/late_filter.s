# A VMM whose second thread installs an event filter while its guest runs on another core.
#
# The guest counts a loop on PMC0 and on fixed counter 0, and says so in memory. Then the other thread denies
# instructions, and says so too; nothing has made the guest leave yet. After its next exit the guest counts the
# loop again, writes its selector with the value that it has, counts again, and the same with FIXED_CTR_CTRL.
#
# Where KVM looks at a new filter before the next entry, nothing is counted any more, and nothing that was
# counted is lost. The first version of the series looked when a selector was written: hardware counted on
# until then (--quirk v1-filter-update), and FIXED_CTR_CTRL cleared what was denied, which is no bug of it.
#
#: guest ../lessons/07_contention.s
#: modes emulated passthrough mediated
#: args --cores 2
#: expect all: exit_code == 0
#: expect all: printed("PMC0 first: ") == COUNTED
#: expect all: printed("fixed 0 first: ") == COUNTED
#: expect all: printed("PMC0 under the filter: ") == COUNTED
#: expect all: printed("fixed 0 under the filter: ") == COUNTED
#: expect all: printed("PMC0 behind its selector: ") == COUNTED
#: expect all: printed("fixed 0 behind its selector: ") == COUNTED
#: expect all: printed("PMC0 behind FIXED_CTR_CTRL: ") == COUNTED
#: expect emulated mediated: printed("fixed 0 behind FIXED_CTR_CTRL: ") == COUNTED
#: expect passthrough: printed("fixed 0 behind FIXED_CTR_CTRL: ") == 0

        .intel_syntax noprefix
        .include "linux.inc"
        .include "host.inc"

        .equ TURNS, 100
        .equ COUNTED, 2 * TURNS + 5     # the loop, and five around it: see lesson 1
        .equ CPUID_ROOM, 64
        .equ NAP, 20000                 # nanoseconds between two looks at the guest's memory

        # The guest's memory.
        .equ MEMORY, 0x10000
        .equ CODE_AT, 0x1000
        .equ COUNTS_DONE, 0x4000
        .equ FILTER_IN, 0x4008
        .equ PORT, 0x10
        .equ IA32_PMC0, 0xc1
        .equ IA32_PERFEVTSEL0, 0x186
        .equ IA32_FIXED_CTR0, 0x309
        .equ IA32_FIXED_CTR_CTRL, 0x38d
        .equ IA32_PERF_GLOBAL_CTRL, 0x38f
        .equ INSTRUCTIONS, 0x4300c0     # INST_RETIRED.ANY_P, USR OS EN

        .macro nap
        lea rdi, [rip + a_nap]
        xor esi, esi
        linux nanosleep
        .endm

        # Run the guest until it has a number to tell.
        .macro told what
        call run
        print_value "\what"
        .endm

# r12 /dev/kvm, r13 the VM, r14 the vCPU, rbx its struct kvm_run, r15 the guest's memory
        .text
        .globl _start
_start:
        mov edi, AT_FDCWD
        lea rsi, [rip + dev_kvm]
        mov edx, O_RDWR
        linux openat
        exit_if_error 1
        mov r12d, eax
        do_ioctl r12d, KVM_CREATE_VM
        exit_if_error 2
        mov r13d, eax
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
        mov r15, rax
        mov [rip + region + kvm_userspace_memory_region_userspace_addr], rax
        lea rdi, [rax + CODE_AT]
        lea rsi, [rip + guest]
        mov ecx, guest_end - guest
        rep movsb
        must_ioctl r13d, KVM_SET_USER_MEMORY_REGION, region, 5
        do_ioctl r13d, KVM_CREATE_VCPU
        exit_if_error 6
        mov r14d, eax
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
        mov rbx, rax
        must_ioctl r12d, KVM_GET_SUPPORTED_CPUID, cpuid, 9
        must_ioctl r14d, KVM_SET_CPUID2, cpuid, 10
        must_ioctl r14d, KVM_GET_SREGS, sregs, 11
        long_mode sregs
        must_ioctl r14d, KVM_SET_SREGS, sregs, 12
        must_ioctl r14d, KVM_SET_REGS, regs, 13

        mov edi, CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM
        lea rsi, [rip + stack_end]
        xor edx, edx
        xor r10d, r10d
        xor r8d, r8d
        linux clone
        exit_if_error 14
        jz other_thread

        told "PMC0 first:"
        told "fixed 0 first:"
        told "PMC0 under the filter:"
        told "fixed 0 under the filter:"
        told "PMC0 behind its selector:"
        told "fixed 0 behind its selector:"
        told "PMC0 behind FIXED_CTR_CTRL:"
        told "fixed 0 behind FIXED_CTR_CTRL:"
        exit_program 0

# The guest's next number to rax.
run:    do_ioctl r14d, KVM_RUN
        cmp rax, -EINTR
        je run
        exit_if_error 15
        cmp dword ptr [rbx + kvm_run_exit_reason], KVM_EXIT_IO
        jne wrong
        mov rsi, [rbx + kvm_run_io_data_offset]
        mov eax, [rbx + rsi]
        ret
wrong:  exit_program 16

# --- the other thread -----------------------------------------------------------------------------------
other_thread:
        set_affinity 0, second_core     # fails on one core: then the guest is preempted
1:      nap
        cmp dword ptr [r15 + COUNTS_DONE], 0
        je 1b
        must_ioctl r13d, KVM_SET_PMU_EVENT_FILTER, filter, 17
        mov dword ptr [r15 + FILTER_IN], 1
        xor edi, edi
        linux exit

# --- what the guest runs --------------------------------------------------------------------------------
        .macro guest_wrmsr msr, low, high=0
        mov ecx, \msr
        mov eax, \low
        mov edx, \high
        wrmsr
        .endm

        # Count the loop on both, and tell what they have.
        .macro guest_count
        guest_wrmsr IA32_PERF_GLOBAL_CTRL, 1, 1
        mov esi, TURNS
5:      dec esi
        jnz 5b
        guest_wrmsr IA32_PERF_GLOBAL_CTRL, 0
        .endm
        .macro guest_tell
        mov ecx, IA32_PMC0
        rdmsr
        out PORT, eax
        mov ecx, IA32_FIXED_CTR0
        rdmsr
        out PORT, eax
        .endm

guest:  guest_wrmsr IA32_PERF_GLOBAL_CTRL, 0
        guest_wrmsr IA32_PERFEVTSEL0, INSTRUCTIONS
        guest_wrmsr IA32_FIXED_CTR_CTRL, 3
        guest_count
        guest_tell
        mov dword ptr [COUNTS_DONE], 1
6:      cmp dword ptr [FILTER_IN], 0
        je 6b
        xor eax, eax
        cpuid                           # it leaves, and the filter holds when it comes back
        guest_count
        guest_tell
        guest_wrmsr IA32_PERFEVTSEL0, INSTRUCTIONS
        guest_count
        guest_tell
        guest_wrmsr IA32_FIXED_CTR_CTRL, 3
        guest_count
        guest_tell
7:      jmp 7b
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
filter: .long KVM_PMU_EVENT_DENY, 1, 1, 0       # one event, and fixed counter 0
        .zero 16
        .quad 0x00c0
cpuid:  .long CPUID_ROOM, 0
        .zero CPUID_ROOM * sizeof_kvm_cpuid_entry2
sregs:  .zero sizeof_kvm_sregs
a_nap:  .quad 0, NAP
second_core:
        .quad 2

        .bss
        .balign 16
        .zero 4096
stack_end:

        host_storage
