# A breakpoint on a port.
#
#: modes bare emulated
#: expect bare: instructions == 24
#: expect emulated: instructions == 23

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
        mov eax, 0x80
        mov dr1, rax
        mov eax, 0x200008
        mov dr7, rax
        out 0x80, al
        nop
        debug_exit 0
db:
        iretq
        idt_storage
        .text
