# A VMM with threads, as QEMU is one: each vCPU of its VM has a thread, and the main thread profiles them.
#
# The guest is part of this file. vCPU 0 starts vCPU 1 by INIT and a startup message; from then on they do
# the same rounds: each counts the instructions of a loop of its own on its counter 0, and adds to a word
# that both have, LOCKed. vCPU 0 begins a round by an IPI and halts until it gets one back; vCPU 1 halts
# until its IPI comes. So each is halted and woken ROUNDS times, while both share their cores with another
# guest. However the threads are scheduled and wherever they go, each vCPU counts exactly what it did.
#
# The main thread has events on each thread, and on itself ones that its threads inherit. Every retired
# instruction of a guest is a :G one of its thread's events; the inherited one is the sum. What the host
# retires (:H) goes on while events are switched on and off, so there the sum lies between an event that was
# switched on first and off last, and one the other way round. In mode passthrough the PMU is the guest's
# while it runs, and the host counts nothing of it.
#
#: guest ../lessons/07_contention.s
#: modes emulated passthrough
#: args --cores 2
#: expect all: exit_code == 0
#: expect all: printed("exact counts of vCPU 0: ") == ROUNDS
#: expect all: printed("exact counts of vCPU 1: ") == ROUNDS
#: expect all: printed("sum of both: ") == 2 * ROUNDS * TURNS
#: expect emulated: printed("instructions:G of vCPU 0: ") == GUEST_0
#: expect emulated: printed("instructions:G of vCPU 1: ") == GUEST_1
#: expect emulated: printed("instructions:G inherited: ") == GUEST_0 + GUEST_1
#: expect passthrough: printed("instructions:G inherited: ") == 0
#: expect all: printed("instructions:H of all threads: ") >= printed("instructions:H at least: ")
#: expect all: printed("instructions:H of all threads: ") <= printed("instructions:H at most: ")

        .intel_syntax noprefix
        .include "linux.inc"
        .include "host.inc"

        .equ ROUNDS, 8
        .equ TURNS, 300
        .equ NAP, 20000                 # nanoseconds between two looks at another thread
        .equ THREAD_STACK, 4096
        .equ CPUID_ROOM, 64

        # The guest's memory.
        .equ MEMORY, 0x10000
        .equ CODE_0, 0x1000
        .equ CODE_1, 0x2000             # the page of the startup message
        .equ TABLES, 0x3000             # GDT, IDT of 65 gates
        .equ SUM, 0x4000
        .equ STACK_0, 0x6000
        .equ STACK_1, 0x7000
        .equ PORT_COUNT, 0x10
        .equ PORT_DONE, 0x11
        .equ VECTOR, 0x40
        .equ IA32_APIC_BASE, 0x1b
        .equ IA32_PMC0, 0xc1
        .equ IA32_PERFEVTSEL0, 0x186
        .equ IA32_PERF_GLOBAL_CTRL, 0x38f
        .equ X2APIC_EOI, 0x80b
        .equ X2APIC_SIVR, 0x80f
        .equ X2APIC_ICR, 0x830
        .equ ICR_INIT, 0x4500
        .equ ICR_STARTUP, 0x4600 | CODE_1 >> 12
        .equ ICR_FIXED, 0x4000 | VECTOR
        .equ COUNT_INSTRUCTIONS, 0x4300c0       # INST_RETIRED.ANY_P, USR OS EN
        .equ EXPECTED, 3 * TURNS + 5            # the loop, and five around it: see lesson 1

        # What the guests retire. An instruction that exits does not: RDMSR, WRMSR but for EOI, OUT, HLT.
        .equ SETUP, 8
        .equ MESSAGE, 3
        .equ COUNTER, 7
        .equ COUNT, 3 * TURNS + 11
        .equ WAIT, 2 + 5                # and the handler
        .equ ROUND, MESSAGE + COUNT + WAIT + 2
        .equ GUEST_0, SETUP + 2 * MESSAGE + WAIT + COUNTER + ROUNDS * ROUND + 1
        .equ GUEST_1, SETUP + 7 + MESSAGE + COUNTER + ROUNDS * ROUND + 1

# Sleep; any thread may. Destroys rax, rcx, rdi, rsi, r11.
        .macro nap
        lea rdi, [rip + a_nap]
        xor esi, esi
        linux nanosleep
        .endm

# What a thread has to itself, at rbx of the main thread and rbp of its own.
        .equ T_VCPU, 0                  # number of its vCPU
        .equ T_TID, 4                   # cleared when the thread ends
        .equ T_READY, 8
        .equ T_COUNTS, 12               # exact ones
        .equ T_SUM, 16                  # what its guest saw in the end
        .equ T_GUEST, 24                # events
        .equ T_HOST, 28
        .equ THREAD, 32

# r12 /dev/kvm, r13 the VM
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
        mov rbx, rax
        mov [rip + region + kvm_userspace_memory_region_userspace_addr], rax
        lea rdi, [rbx + CODE_0]
        lea rsi, [rip + guest_0]
        mov ecx, guest_1 - guest_0
        rep movsb
        lea rdi, [rbx + CODE_1]
        mov ecx, guest_end - guest_1
        rep movsb
        lea rdi, [rbx + TABLES]
        lea rsi, [rip + gdt]
        mov ecx, tables_end - gdt
        rep movsb
        lea rdi, [rbx + TABLES + IDT + VECTOR * 16]
        lea rsi, [rip + gate]
        mov ecx, 16
        rep movsb
        must_ioctl r13d, KVM_SET_USER_MEMORY_REGION, region, 5
        must_ioctl r12d, KVM_GET_SUPPORTED_CPUID, cpuid, 6

        # Inherited events first: a thread gets its share of them when it is made.
        perf_open inherited_guest, 0, ANY
        exit_if_error 7
        mov [rip + fd_guest], eax
        perf_open inherited_host, 0, ANY
        exit_if_error 7
        mov [rip + fd_most], eax
        perf_open inherited_host, 0, ANY
        exit_if_error 7
        mov [rip + fd_least], eax
        perf_open host, 0, ANY
        exit_if_error 7
        mov [rip + fd_main], eax
        lea rbx, [rip + threads]
        call start_thread
        add rbx, THREAD
        call start_thread
        lea rbx, [rip + threads]
        call watch_thread
        add rbx, THREAD
        call watch_thread
        mov r14d, PERF_EVENT_IOC_ENABLE
        call switch_guest
        mov ebx, [rip + fd_most]
        call switch
        call switch_parts
        mov ebx, [rip + fd_least]
        call switch
        mov dword ptr [rip + may_run], 1

        # Join both, and send the second one from core to core, if there are two.
2:      nap
        mov ebx, [rip + threads + THREAD + T_TID]
        test ebx, ebx
        jz 3f
        xor byte ptr [rip + mask], 3    # core 0 is bit 0
        set_affinity ebx, mask
3:      mov eax, [rip + threads + T_TID]
        or eax, [rip + threads + THREAD + T_TID]
        jnz 2b
        mov r14d, PERF_EVENT_IOC_DISABLE
        mov ebx, [rip + fd_least]
        call switch
        call switch_parts
        mov ebx, [rip + fd_most]
        call switch
        call switch_guest
        mov ebx, [rip + threads + T_GUEST]
        call count
        print_value "instructions:G of vCPU 0:"
        mov ebx, [rip + threads + THREAD + T_GUEST]
        call count
        print_value "instructions:G of vCPU 1:"
        mov ebx, [rip + fd_guest]
        call count
        print_value "instructions:G inherited:"
        mov ebx, [rip + fd_least]
        call count
        print_value "instructions:H at least:"
        mov ebx, [rip + fd_main]
        call count
        mov r15, rax
        mov ebx, [rip + threads + T_HOST]
        call count
        add r15, rax
        mov ebx, [rip + threads + THREAD + T_HOST]
        call count
        add rax, r15
        print_value "instructions:H of all threads:"
        mov ebx, [rip + fd_most]
        call count
        print_value "instructions:H at most:"
        mov eax, [rip + threads + T_COUNTS]
        print_value "exact counts of vCPU 0:"
        mov eax, [rip + threads + THREAD + T_COUNTS]
        print_value "exact counts of vCPU 1:"
        mov eax, [rip + threads + T_SUM]
        print_value "sum of both:"
        exit_program 0

# ioctl r14d on every event of one thread alone. Destroys rax, rbx, rcx, rdx, rdi, rsi, r11.
switch_parts:
        mov ebx, [rip + fd_main]
        call switch
        mov ebx, [rip + threads + T_HOST]
        call switch
        mov ebx, [rip + threads + THREAD + T_HOST]
        jmp switch
switch_guest:
        mov ebx, [rip + threads + T_GUEST]
        call switch
        mov ebx, [rip + threads + THREAD + T_GUEST]
        call switch
        mov ebx, [rip + fd_guest]
switch: do_ioctl ebx, r14d
        exit_if_error 8
        ret

# The count of event ebx to rax.
count:  read_into value, ebx, 8
        cmp eax, 8
        jne unread
        mov rax, [rip + value]
        ret
unread: exit_program 9

# Make the thread of rbx and wait until its vCPU is ready.
start_thread:
        mov eax, [rbx + T_VCPU]
        inc eax
        imul eax, eax, THREAD_STACK
        lea rsi, [rip + stacks]
        add rsi, rax
        mov rbp, rbx
        mov edi, CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM
        or edi, CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID
        lea rdx, [rbx + T_TID]
        mov r10, rdx
        xor r8d, r8d
        linux clone
        exit_if_error 10
        jz vcpu_thread
1:      nap
        cmp dword ptr [rbx + T_READY], 0
        je 1b
        ret

# Events of the thread of rbx.
watch_thread:
        mov r15d, [rbx + T_TID]
        perf_open guest, r15, ANY
        exit_if_error 11
        mov [rbx + T_GUEST], eax
        perf_open host, r15, ANY
        exit_if_error 11
        mov [rbx + T_HOST], eax
        ret

# --- a vCPU's thread: rbp is what it has to itself, r14 the vCPU, rbx its struct kvm_run ------------------
vcpu_thread:
        mov edx, [rbp + T_VCPU]
        mov edi, r13d
        mov esi, KVM_CREATE_VCPU
        linux ioctl
        exit_if_error 12
        mov r14d, eax
        do_ioctl r12d, KVM_GET_VCPU_MMAP_SIZE
        exit_if_error 13
        mov esi, eax
        xor edi, edi
        mov edx, PROT_READ | PROT_WRITE
        mov r10d, MAP_SHARED
        mov r8d, r14d
        xor r9d, r9d
        linux mmap
        exit_if_error 14
        mov rbx, rax
        must_ioctl r14d, KVM_SET_CPUID2, cpuid, 15
        cmp dword ptr [rbp + T_VCPU], 0
        jne ready                       # it waits for its startup message

        must_ioctl r14d, KVM_GET_SREGS, sregs, 16
        long_mode sregs
        must_ioctl r14d, KVM_SET_SREGS, sregs, 17
        must_ioctl r14d, KVM_SET_REGS, regs, 18

ready:  mov dword ptr [rbp + T_READY], 1
1:      nap
        cmp dword ptr [rip + may_run], 0
        je 1b
run:    do_ioctl r14d, KVM_RUN
        cmp rax, -EINTR
        je run
        cmp rax, -EAGAIN                # INIT has come: now it waits for the startup message
        je run
        exit_if_error 19
        cmp dword ptr [rbx + kvm_run_exit_reason], KVM_EXIT_IO
        jne wrong
        mov rsi, [rbx + kvm_run_io_data_offset]
        mov eax, [rbx + rsi]
        cmp word ptr [rbx + kvm_run_io_port], PORT_DONE
        je over
        cmp eax, EXPECTED
        jne differs
        inc dword ptr [rbp + T_COUNTS]
        jmp run
over:   mov [rbp + T_SUM], rax
        xor edi, edi
        linux exit
wrong:  exit_program 20
differs:
        print_value "a vCPU counted"
        exit_program 21

# --- what the guest runs --------------------------------------------------------------------------------
# Write a value to an MSR.
        .macro guest_wrmsr msr, low, high=0
        mov ecx, \msr
        mov eax, \low
        mov edx, \high
        wrmsr
        .endm

# Descriptor tables and the local APIC, in x2APIC mode.
        .macro guest_setup stack
        mov esp, \stack
        lgdt [TABLES + GDT_POINTER]
        lidt [TABLES + IDT_POINTER]
        mov ecx, IA32_APIC_BASE
        rdmsr
        or eax, 0xc00
        wrmsr
        guest_wrmsr X2APIC_SIVR, 0x1ff
        .endm

# The counter and the rounds.
        .macro guest_counter
        guest_wrmsr IA32_PERF_GLOBAL_CTRL, 0
        guest_wrmsr IA32_PERFEVTSEL0, COUNT_INSTRUCTIONS
        mov ebp, ROUNDS
        .endm

# Count a loop and tell.
        .macro guest_count
        guest_wrmsr IA32_PMC0, 0
        guest_wrmsr IA32_PERF_GLOBAL_CTRL, 1
        mov esi, TURNS
1:      lock inc qword ptr [SUM]
        dec esi
        jnz 1b
        guest_wrmsr IA32_PERF_GLOBAL_CTRL, 0
        mov ecx, IA32_PMC0
        rdmsr
        out PORT_COUNT, eax
        .endm

# Halt until the other one sends a message, which is taken here and nowhere else.
        .macro guest_wait
        sti
        hlt
        cli
        .endm

guest_0:
        guest_setup STACK_0
        guest_wrmsr X2APIC_ICR, ICR_INIT, 1
        guest_wrmsr X2APIC_ICR, ICR_STARTUP, 1
        guest_wait                      # it is ready
        guest_counter
2:      guest_wrmsr X2APIC_ICR, ICR_FIXED, 1
        guest_count
        guest_wait
        dec ebp
        jnz 2b
        mov eax, [SUM]
        out PORT_DONE, eax
guest_handler:
        mov ecx, X2APIC_EOI
        xor eax, eax
        xor edx, edx
        wrmsr
        iretq
guest_1:
        guest_setup STACK_1
        push 0                          # CS by IRETQ
        push rsp
        push 2
        push 8
        lea rax, [rip + 3f]
        push rax
        iretq
3:      guest_wrmsr X2APIC_ICR, ICR_FIXED, 0
        guest_counter
4:      guest_wait
        guest_count
        guest_wrmsr X2APIC_ICR, ICR_FIXED, 0
        dec ebp
        jnz 4b
        mov eax, [SUM]
        out PORT_DONE, eax
guest_end:

        .data
        .balign 8
gdt:    .quad 0, 0x00af9b000000ffff     # null, 64-bit code
        .equ GDT_POINTER, 16
        .word 15
        .long TABLES, 0
        .zero 6
        .equ IDT_POINTER, 32
        .word IDT_SIZE - 1
        .long TABLES + IDT, 0
tables_end:
        .equ IDT, 64
        .equ IDT_SIZE, (VECTOR + 1) * 16
gate:   .word guest_handler - guest_0 + CODE_0, 8, 0x8e00, 0
        .quad 0
region: .long 0, 0                      # slot, flags
        .quad 0, MEMORY, 0              # guest-physical address, size, where it is here
regs:   .zero kvm_regs_rip
        .quad CODE_0, 2
        .zero sizeof_kvm_regs - kvm_regs_rflags - 8
cpuid:  .long CPUID_ROOM, 0
        .zero CPUID_ROOM * sizeof_kvm_cpuid_entry2
sregs:  .zero sizeof_kvm_sregs
dev_kvm:
        .asciz "/dev/kvm"
        .balign 8
        .equ ONE_EVENT, PERF_ATTR_DISABLED
        .equ INHERITED, PERF_ATTR_DISABLED | PERF_ATTR_INHERIT
guest:  perf_attr PERF_TYPE_HARDWARE, PERF_COUNT_HW_INSTRUCTIONS, ONE_EVENT | PERF_ATTR_EXCLUDE_HOST
host:   perf_attr PERF_TYPE_HARDWARE, PERF_COUNT_HW_INSTRUCTIONS, ONE_EVENT | PERF_ATTR_EXCLUDE_GUEST
inherited_guest:
        perf_attr PERF_TYPE_HARDWARE, PERF_COUNT_HW_INSTRUCTIONS, INHERITED | PERF_ATTR_EXCLUDE_HOST
inherited_host:
        perf_attr PERF_TYPE_HARDWARE, PERF_COUNT_HW_INSTRUCTIONS, INHERITED | PERF_ATTR_EXCLUDE_GUEST
threads:
        .long 0
        .zero THREAD - 4
        .long 1
        .zero THREAD - 4
a_nap:  .quad 0, NAP
mask:   .quad 1
value:  .quad 0
may_run:
        .long 0
fd_guest:
        .long 0
fd_most:
        .long 0
fd_least:
        .long 0
fd_main:
        .long 0

        .bss
        .balign 16
stacks: .zero 2 * THREAD_STACK

        host_storage
