# An address where nothing is: all ones are read, writes are lost, by every kind of access and over the end of a page.
#
# Under KVM each access is a KVM_EXIT_MMIO, and it is the VMM that has nothing there.
#
#: row X-open-bus
#: modes bare none emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: mem64(failures) == 0
#: expect all: mem64(checks) == 13

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ NOWHERE, 0xd0000000        # memory ends below 3 GiB, and goes on from 4 GiB
        .equ TABLE, 3                   # P, RW
        .equ PAGE_OF_1_GIB, 0x83        # P, RW, PS

        .text
        .globl _start
_start:
        plain_setup
        case 1
        lea rax, [rip + pdpt + TABLE]
        mov [rip + pml4], rax
        mov qword ptr [rip + pdpt], PAGE_OF_1_GIB
        mov rax, 0xc0000000 + PAGE_OF_1_GIB
        mov [rip + pdpt + 24], rax
        lea rax, [rip + pml4]
        mov cr3, rax
        mov r13d, NOWHERE

        movzx eax, byte ptr [r13 + 1]
        judge 0xff
        movzx eax, word ptr [r13 + 2]
        judge 0xffff
        mov eax, [r13 + 4]
        judge 0xffffffff
        mov rax, [r13 + 8]
        judge -1
        mov rax, [r13 + 0x1000 - 3]     # two pages
        judge -1
        case 2                          # nothing is kept
        mov qword ptr [r13], 0
        mov rax, [r13]
        judge -1
        mov eax, 1
        add [r13], eax
        setc al                         # all ones and one
        movzx eax, al
        judge 1
        mov eax, 5
        xchg [r13], rax
        judge -1
        push qword ptr [r13]
        pop rax
        judge -1
        push 7
        pop qword ptr [r13]
        mov rax, [r13]
        judge -1
        case 3                          # strings
        lea rdi, [rip + found]
        mov rsi, r13
        mov ecx, 4
        rep movsd
        mov rax, [rip + found + 8]
        judge -1
        mov rdi, r13
        mov ecx, 20
        xor eax, eax
        rep stosq
        mov rax, rdi
        sub rax, r13
        judge 160
        mov eax, ecx
        judge 0
        debug_exit 0

        .bss
        .balign 4096
pml4:   .zero 4096
pdpt:   .zero 4096
found:  .zero 16
        conformance_kit
