# A page of the kernel at CPL 3.
#~ modes bare emulated
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: load_tss
        load_idt
        mov rax, cr0
        bts rax, 16                     # CR0.WP
        mov cr0, rax
        lea rax, [rip + pml4]
        mov cr3, rax
        push_user_frame user
        iretq
user:   mov eax, 0x40000000
        mov rbx, [rax]
        idt_storage
        ring3_storage
        .data
        .balign 4096
pml4:   .quad pdpt + 7
        .zero 4088
pdpt:   .quad 0x80 + 7                # the first GiB
        .quad 0x80 + 0x40000000 + 3   # the second
        .zero 4080
#= triple fault, first exception vector 14 at rip 0x10007e (page_kernel.s:16)
#= why: `mov rbx, [rax]` reads 0x40000000 at CPL 3, where the page is for the kernel: #PF(0x5)
#= why: #PF is not delivered: its gate in the IDT is empty: #DF(0)
#= why: #DF is not delivered: its gate in the IDT is empty: a triple fault
