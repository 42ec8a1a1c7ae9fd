# An IDT that is nowhere.
#~ modes bare emulated
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: lidt [rip + where]
        mov rax, cr0
        bts rax, 16                     # CR0.WP
        mov cr0, rax
        lea rax, [rip + pml4]
        mov cr3, rax
        ud2
        .data
where:    .word 0xfff
        .quad 0x123456789000
        .data
        .balign 4096
pml4:   .quad pdpt + 3
        .zero 4088
pdpt:   .quad 0x80 + 3                # the first GiB
        .quad 0x80 + 0x40000000 + 3   # the second
        .zero 4080
#= triple fault, first exception vector 6 at rip 0x10001c (idt_nowhere.s:12)
#= why: `ud2` is there to raise it: #UD
#= why: #UD is not delivered: its gate cannot be read, #PF at 0x123456789060: #PF(0)
#= why: #PF is not delivered: its gate cannot be read, #PF at 0x1234567890e0: #DF(0)
#= why: #DF is not delivered: its gate cannot be read, #PF at 0x123456789080: a triple fault
