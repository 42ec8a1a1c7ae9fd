# A stack that is nowhere.
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
        mov rsp, 0x123456789000
        set_gate 6, there
there:  ud2
        idt_storage
        .data
        .balign 4096
pml4:   .quad pdpt + 3
        .zero 4088
pdpt:   .quad 0x80 + 3                # the first GiB
        .quad 0x80 + 0x40000000 + 3   # the second
        .zero 4080
#= triple fault, first exception vector 6 at rip 0x10005d (no_stack.s:14)
#= why: `ud2` is there to raise it: #UD
#= why: #UD is not delivered: its frame cannot be written to the stack, #PF at 0x123456788ff8: #PF(0x2)
#= why: #PF is not delivered: its gate in the IDT is empty: #DF(0)
#= why: #DF is not delivered: its gate in the IDT is empty: a triple fault
