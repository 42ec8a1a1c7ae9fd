# perf record for the VMM: samples of its instructions, 50 000 a second, through the ring buffer.
#
# In frequency mode perf begins with a period of 1 and adjusts it at every overflow and every tick until
# the rate is right. Each overflow is an NMI, and its handler writes one record: here where the processor
# was (PERF_SAMPLE_IP). The records lie behind the control page, from data_tail to data_head modulo the
# size of the buffer; this program is the only reader. What was sampled stands in the record's header:
# a user program, the kernel, or the guest.
#
#: guest ../workloads/spin.s
#: modes emulated
#: expect all: printed("samples of the guest's kernel ") > 0
#: expect all: printed("samples of the kernel ") > 0
#: expect all: printed("other records ") == 0
#: expect all: exit_code == 0

        .intel_syntax noprefix
        .include "linux.inc"
        .include "host.inc"

        .equ FREQUENCY, 50000
        .equ TIME, 400000               # nanoseconds
        .equ PAGE, 4096
        .equ PAGES, 8                   # of data: a power of 2

        .text
        .globl _start
_start:
        perf_open attr, VMM, ANY
        exit_if_error 1
        mov ebx, eax
        xor edi, edi
        mov esi, (1 + PAGES) * PAGE
        mov edx, PROT_READ | PROT_WRITE
        mov r10d, MAP_SHARED
        mov r8d, ebx
        xor r9d, r9d
        linux mmap
        exit_if_error 2
        mov rbp, rax                    # the control page
        do_ioctl ebx, PERF_EVENT_IOC_ENABLE
        exit_if_error 3
        sleep_ns TIME
        do_ioctl ebx, PERF_EVENT_IOC_DISABLE
        exit_if_error 3

        mov r12, [rbp + perf_event_mmap_page_data_head]
        mov r13, [rbp + perf_event_mmap_page_data_tail]
        mov r14, [rbp + perf_event_mmap_page_data_offset]
        add r14, rbp
        mov r15, [rbp + perf_event_mmap_page_data_size]
        dec r15
next:   cmp r13, r12
        jae done
        mov rsi, r13
        and rsi, r15
        add rsi, r14                    # a header of 8 bytes never wraps
        mov eax, [rsi + perf_event_header_type]
        movzx ecx, word ptr [rsi + perf_event_header_misc]
        movzx edx, word ptr [rsi + perf_event_header_size]
        add r13, rdx
        lea rdi, [rip + others]
        cmp eax, PERF_RECORD_SAMPLE
        jne 1f
        and ecx, PERF_RECORD_MISC_CPUMODE_MASK
        lea rdi, [rip + modes]
        lea rdi, [rdi + rcx * 8]
1:      inc qword ptr [rdi]
        jmp next
done:   mov [rbp + perf_event_mmap_page_data_tail], r13

        mov rax, [rip + modes + 8 * PERF_RECORD_MISC_USER]
        print_value "samples of the VMM"
        mov rax, [rip + modes + 8 * PERF_RECORD_MISC_KERNEL]
        print_value "samples of the kernel"
        mov rax, [rip + modes + 8 * PERF_RECORD_MISC_GUEST_KERNEL]
        print_value "samples of the guest's kernel"
        mov rax, [rip + modes + 8 * PERF_RECORD_MISC_GUEST_USER]
        print_value "samples of the guest's programs"
        mov rax, [rip + others]
        print_value "other records"
        mov rax, r12
        print_value "bytes"
        exit_program 0

        .data
        .balign 8
attr:   perf_attr PERF_TYPE_HARDWARE, PERF_COUNT_HW_INSTRUCTIONS, PERF_ATTR_DISABLED | PERF_ATTR_FREQ, 0, FREQUENCY, PERF_SAMPLE_IP
        .balign 8
modes:  .zero 8 * 8                     # samples by PERF_RECORD_MISC_CPUMODE_MASK
others: .quad 0

        host_storage
