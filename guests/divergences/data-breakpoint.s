# A data breakpoint on what OUTSB reads.
#
#: modes bare emulated
#: expect bare: instructions == 26
#: expect emulated: instructions == 25

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        load_idt
        set_gate 1, db
        mov rax, cr4
        or eax, 8
        mov cr4, rax
        lea rax, [rip + cell]
        mov dr0, rax
        mov eax, 0x30002
        mov dr7, rax
        lea rsi, [rip + cell]
        mov edx, 0x80
        outsb
        nop
        debug_exit 0
db:
        iretq
        idt_storage
        .text

        .data
cell:   .byte 1
