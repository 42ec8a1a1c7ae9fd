# REP STOSQ to where no memory is.
#
#: modes bare emulated
#: expect bare: instructions == 12
#: expect emulated: instructions == 15

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        lea rax, [rip + pdpt]
        or rax, 3
        mov [rip + pml4], rax
        mov qword ptr [rip + pdpt], 0x83
        lea rax, [rip + pml4]
        mov cr3, rax
        mov edi, 0x20000000
        mov ecx, 4
        rep stosq
        nop
        debug_exit 0

        .bss
        .balign 4096
pml4:   .zero 4096
pdpt:   .zero 4096
