# Debug registers of a guest are its own: breakpoints on an instruction, on data, on a port, general detect.
#
# The handler of #DB notes where it came, DR6 and DR7, clears DR6 and goes on with RF set. In order: an instruction,
# before it is done; the write to a cell, behind it; a push onto it; the second element of a REP, RIP still at
# the instruction; MOV DR with DR7.GD set, before it; and the OUT. What the fixed bits of DR6 and DR7 become is
# in r8 and r9, DR4 in r10, the counted loop in rbx: its breakpoint came once each time, RF being gone.
#
# An OUT leaves the guest before silicon looks at its port, and KVM does not: no #DB there.
#
#: row X-breakpoints
#: modes bare none emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: r8 == DR6_ALL
#: expect all: r9 == DR7_ALL
#: expect all: r10 == DR6_RESET
#: expect all: rbx == LOOPS
#: expect all: mem64(place) == at
#: expect all: mem64(why) == DR6_RESET + 1
#: expect all: mem64(place + 8) == at
#: expect all: mem64(place + 16) == at
#: expect all: mem64(place + 24) == written
#: expect all: mem64(why + 24) == DR6_RESET + 2
#: expect all: mem64(place + 32) == pushed
#: expect all: mem64(why + 32) == DR6_RESET + 2
#: expect all: mem64(place + 40) == filling
#: expect all: mem64(why + 40) == DR6_RESET + 2
#: expect all: mem64(place + 48) == detected
#: expect all: mem64(why + 48) == DR6_RESET + DR6_BD
#: expect all: mem64(dr7_then + 48) == DR7_RESET
#: expect bare: mem64(count) == 8
#: expect bare: mem64(place + 56) == sent
#: expect bare: mem64(why + 56) == DR6_RESET + 4
#: expect none emulated passthrough: mem64(count) == 7

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .equ LOOPS, 3
        .equ DR6_RESET, 0xffff0ff0
        .equ DR6_ALL, 0xffffefff
        .equ DR6_BD, 0x2000
        .equ DR7_RESET, 0x400
        .equ DR7_ALL, 0xffff0700
        .equ DR7_GD, 0x2000
        .equ DR7_G0, 0x2
        .equ DR7_G1_WRITE_8, 0x00900008
        .equ DR7_G2_IO, 0x02000020
        .equ CR4_DE, 8

        .text
        .globl _start
_start:
        load_idt
        set_gate 1, db
        mov eax, 0xffffffff             # what is fixed
        mov dr6, rax
        mov r8, dr6
        mov eax, 0xffffdf00
        mov dr7, rax
        mov r9, dr7
        mov eax, DR7_RESET
        mov dr7, rax
        xor eax, eax
        mov dr6, rax
        mov r10, dr4
        lea rax, [rip + at]             # an instruction
        mov dr0, rax
        mov eax, DR7_G0
        mov dr7, rax
        xor ebx, ebx
at:     inc ebx
        cmp ebx, LOOPS
        jb at
        lea rax, [rip + cell]           # data
        mov dr1, rax
        mov eax, DR7_G1_WRITE_8
        mov dr7, rax
        mov rcx, [rip + cell]
        mov byte ptr [rip + cell + 7], 1
written:
        mov byte ptr [rip + cell + 8], 1
        mov rcx, rsp
        lea rsp, [rip + cell + 8]
        push rcx
pushed: mov rsp, rcx
        lea rdi, [rip + cell - 8]
        mov ecx, 3
        cld
filling:
        rep stosq
        mov eax, DR7_GD                 # MOV DR itself
        mov dr7, rax
detected:
        mov rdx, dr0
        mov rax, cr4                    # a port
        or eax, CR4_DE
        mov cr4, rax
        mov eax, 0x80
        mov dr2, rax
        mov eax, DR7_G2_IO
        mov dr7, rax
        out 0x80, al
sent:   mov eax, DR7_RESET
        mov dr7, rax
        debug_exit 0

db:     push rax
        push rcx
        push rdx
        lea rdx, [rip + place]
        mov rcx, [rip + count]
        mov rax, [rsp + 24]
        mov [rdx + rcx * 8], rax
        mov rax, dr6
        mov [rdx + rcx * 8 + (why - place)], rax
        mov rax, dr7
        mov [rdx + rcx * 8 + (dr7_then - place)], rax
        inc qword ptr [rip + count]
        mov eax, DR6_RESET
        mov dr6, rax
        or dword ptr [rsp + 40], 0x10000
        pop rdx
        pop rcx
        pop rax
        iretq

        .bss
        .balign 8
count:  .zero 8
place:  .zero 80
why:    .zero 80
dr7_then: .zero 80
        .balign 64
        .zero 64
cell:   .zero 64
        idt_storage
