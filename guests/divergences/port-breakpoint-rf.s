# A breakpoint on OUTSB; its handler goes on with RF set.
#
#: modes bare emulated
#: args --max-insns 1000
#: expect bare: exit_code == 0
#: expect emulated: stop == "max-insns"

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
        lea rax, [rip + at]
        mov dr0, rax
        mov eax, 0x2
        mov dr7, rax
        lea rsi, [rip + cell]
        mov edx, 0x80
at:     outsb
        nop
        debug_exit 0
db:     or dword ptr [rsp + 16], 0x10000
        iretq
        idt_storage
        .text

        .data
cell:   .byte 1
