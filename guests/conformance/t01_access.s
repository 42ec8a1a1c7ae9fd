# Paging: which access a page allows, by its bits, the ring, CR0.WP and EFER.NXE, with error code and A and D.
#
# One page of 4 KiB, or one of 2 MiB, with every choice of P, RW, US, NX, A and D in its last entry, and a reserved bit
# in turn; it is read, written and fetched in both rings. What must come is computed from the manual's rules.
#
#: row T1
#: row T2
#: row T3
#: upstream x86/access.c ac_test_exec
#: modes bare none emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: mem64(failures) == 0
#: expect all: mem64(checks) == 3 * 2 * 256

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ PAGE_FAULT, 14
        .equ WHERE, 0x40000000          # its own entry of the page directory pointers
        .equ SYSCALL_GATE, 0x80
        .equ P, 1 << 0
        .equ RW, 1 << 1
        .equ US, 1 << 2
        .equ ACCESSED, 1 << 5
        .equ DIRTY, 1 << 6
        .equ PS, 1 << 7
        .equ EVERYTHING, P | RW | US | ACCESSED
        .equ CR0_WP, 1 << 16
        .equ NXE, 1 << 11
        .equ READ, 0
        .equ WRITE, 1
        .equ FETCH, 2

# bits of r12, the case
        .equ B_P, 0
        .equ B_RW, 1
        .equ B_US, 2
        .equ B_NX, 3
        .equ B_RSVD, 4
        .equ B_USER, 5
        .equ B_WP, 6
        .equ B_NXE, 7
        .equ CASES, 256

        ring3_storage

        .text
        .globl _start
_start:
        safe_setup
        load_tss
        set_gate PAGE_FAULT, page_fault
        set_gate SYSCALL_GATE, back_to_kernel, 3
        xor r15d, r15d
        # page tables: the first gigabyte as it is, for both rings; WHERE through tables of its own
        lea rax, [rip + pdpt + EVERYTHING]
        mov [rip + pml4], rax
        mov qword ptr [rip + pdpt], EVERYTHING | PS | DIRTY
        mov rax, 0xc0000000 | P | RW | PS | ACCESSED | DIRTY
        mov [rip + pdpt + 24], rax
        lea rax, [rip + pd + EVERYTHING]
        mov [rip + pdpt + 8], rax
        lea rax, [rip + pml4]
        mov cr3, rax

        xor ebp, ebp                    # 4 KiB, then 2 MiB
size:   lea rbx, [rip + pt]
        lea rax, [rip + pt + EVERYTHING]
        mov [rip + pd], rax
        test ebp, ebp
        jz 1f
        lea rbx, [rip + pd]
1:      xor r12d, r12d
each:   xor r13d, r13d                  # read, write, fetch
access: call prepare
        call expect
        call do_it
        call judge_it
        inc r13d
        cmp r13d, 3
        jb access
        inc r12d
        cmp r12d, CASES
        jb each
        inc ebp
        cmp ebp, 2
        jb size
        debug_exit 0

# Entry and control registers of case r12.
prepare:
        lea rax, [rip + target]
        test ebp, ebp
        jz 1f
        and rax, -0x200000
        or eax, PS
1:      mov ecx, r12d
        and ecx, P | RW | US            # these bits are those of the case
        or rax, rcx
        bt r12d, B_NX
        jnc 2f
        bts rax, 63
2:      bt r12d, B_RSVD
        jnc 3f
        bts rax, 51
3:      mov [rbx], rax
        mov rax, cr0
        and rax, ~CR0_WP
        bt r12d, B_WP
        jnc 4f
        or rax, CR0_WP
4:      mov cr0, rax
        mov ecx, IA32_EFER
        rdmsr
        and eax, ~NXE
        bt r12d, B_NXE
        jnc 5f
        or eax, NXE
5:      wrmsr
        mov rax, cr3
        mov cr3, rax
        ret

# r10 = the error code that must come, -1 if the access is allowed; r8 = bits A and D of the entry after it.
expect:
        mov r10, -1
        xor ecx, ecx                    # the error code without P and RSVD
        cmp r13d, WRITE
        jne 1f
        or ecx, 2
1:      bt r12d, B_USER
        jnc 2f
        or ecx, 4
2:      cmp r13d, FETCH
        jne 3f
        bt r12d, B_NXE
        jnc 3f
        or ecx, 16
3:      mov r10d, ecx
        xor r8d, r8d
        bt r12d, B_P
        jnc 9f
        or r10d, 1 | 8                  # reserved bits come before rights
        bt r12d, B_RSVD
        jc 9f
        bt r12d, B_NX
        jnc 4f
        bt r12d, B_NXE                  # without NXE the bit is reserved
        jnc 9f
4:      mov r10d, ecx
        or r10d, 1
        bt r12d, B_USER
        jnc 5f
        bt r12d, B_US
        jnc 9f
5:      cmp r13d, FETCH
        jne 6f
        bt r12d, B_NX
        jc 9f
        jmp 8f
6:      cmp r13d, WRITE
        jne 8f
        bt r12d, B_RW
        jc 7f
        bt r12d, B_USER
        jc 9f
        bt r12d, B_WP
        jc 9f
7:      or r8d, DIRTY
8:      or r8d, ACCESSED
        mov r10, -1
9:      ret

# The access, in the ring of the case: r11 = its error code, -1 if there was no page fault.
do_it:
        mov r11, -1
        mov esi, WHERE
        lea rax, [rip + target]
        mov ecx, 0xfff
        test ebp, ebp
        jz 1f
        mov ecx, 0x1fffff
1:      and eax, ecx
        add rsi, rax
        mov [rip + kernel_rsp], rsp
        bt r12d, B_USER
        jc 3f
        call one_access
        ret
3:      push_user_frame user
        iretq
user:   call one_access_user
        int SYSCALL_GATE
one_access_user:
one_access:
        lea rdi, [rip + 9f]
        cmp r13d, WRITE
        jb 1f
        je 2f
        call rsi
9:      ret
1:      mov al, [rsi]
        ret
2:      mov byte ptr [rsi], 0xc3        # a RET over a RET
        ret
back_to_kernel:
        mov rsp, [rip + kernel_rsp]
        ret

page_fault:
        pop r11
        cmp r13d, FETCH
        jne 1f
        add qword ptr [rsp + 24], 8     # the return address of the CALL that went wrong
1:      lea rax, [rip + landed]
        mov [rsp], rax
        iretq
landed: ret

judge_it:
        mov r14d, r12d
        shl r14d, 4
        or r14d, r13d
        mov [rip + bits], r8
        mov rax, r11
        judge r10
        cmp r13d, 0
        mov rax, [rbx]
        and eax, ACCESSED | DIRTY
        mov rdx, [rip + bits]
        cmp rax, rdx
        je 1f
        inc qword ptr [rip + failures]
1:      ret

        .data
        .balign 0x1000
target: ret
        .zero 63

        .bss
        .balign 0x1000
pml4:   .zero 0x1000
pdpt:   .zero 0x1000
pd:     .zero 0x1000
pt:     .zero 0x1000
bits:   .zero 8
kernel_rsp:
        .zero 8
        conformance_kit
