# A page without the right to execute.
#~ modes bare emulated
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: load_idt
        mov rax, cr0
        bts rax, 16                     # CR0.WP
        mov cr0, rax
        lea rax, [rip + pml4]
        mov cr3, rax
        mov ecx, IA32_EFER
        rdmsr
        bts eax, 11
        wrmsr
        mov eax, 0x40000000
        jmp rax
        idt_storage
        .data
        .balign 4096
pml4:   .quad pdpt + 3
        .zero 4088
pdpt:   .quad 0x80 + 3                # the first GiB
        .quad 0x80 + 0x40000000 + 3 + (1 << 63)   # the second
        .zero 4080
#= triple fault, first exception vector 14 at rip 0x40000000
#= why: the program executes 0x40000000 at CPL 0, where the page is not for execution: #PF(0x11)
#= why: #PF is not delivered: its gate in the IDT is empty: #DF(0)
#= why: #DF is not delivered: its gate in the IDT is empty: a triple fault
#= why: 0x40000000 is in no section of the program: it has jumped there
