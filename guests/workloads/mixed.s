# A loop of what kernels do: arithmetic, shifts, memory, flags, branches, a call now and then.
#
# Between `work` and `work_end` it needs no register but rsp and touches only `buffer`, so the same
# bytes can also be timed in another emulator and on the processor itself.
#: modes bare
#: args --max-insns 1000000
#: expect all: exit_code == 0
#: expect all: rcx == 0
#: expect all: pmc0 == ROUNDS * insns(loop, work_end) - ROUNDS / 4 * 3 * insns(called, back) + ROUNDS / 4 * insns(helper, work) - ROUNDS * insns(rare, usual) + r12 * insns(rare, usual) + insns(work, loop) + 2 + insns(work_end, close)
#: expect all: fixed0 == pmc0
#: expect all: pmc7 == pmc0
#: expect all: pmc1 >= 2 * ROUNDS
        .intel_syntax noprefix
        .equ ROUNDS, 4096
        .equ COUNTERS, 1
        # 1: through page tables of 4 KiB pages
        .equ PAGING, 0
        .globl _start
_start:
        .if PAGING
        lea rdi, [rip + pt]
        mov eax, 3
        mov ecx, 512
1:      mov [rdi], rax
        add rax, 4096
        add rdi, 8
        loop 1b
        lea rsp, [rip + stack_end]
        lea rax, [rip + pml4]
        mov cr3, rax
        .endif
        .if COUNTERS
        mov ecx, 0x38f; xor eax, eax; xor edx, edx; wrmsr
        mov ecx, 0x186; mov eax, 0x4300c0; xor edx, edx; wrmsr
        mov ecx, 0x187; mov eax, 0x4300c4; xor edx, edx; wrmsr
        mov ecx, 0x188; mov eax, 0x43003c; xor edx, edx; wrmsr
        mov ecx, 0x189; mov eax, 0x4300c5; xor edx, edx; wrmsr
        mov ecx, 0x18a; mov eax, 0x434f2e; xor edx, edx; wrmsr
        mov ecx, 0x18b; mov eax, 0x43412e; xor edx, edx; wrmsr
        mov ecx, 0x18c; mov eax, 0x43013c; xor edx, edx; wrmsr
        mov ecx, 0x18d; mov eax, 0x4300c0; xor edx, edx; wrmsr
        mov ecx, 0x38d; mov eax, 0x3333; wrmsr
        mov ecx, 0x38f; mov eax, 0xff; mov edx, 0xf; wrmsr
        .endif
        jmp work

helper: mov rdi, rbx
        rol rdi, 5
        xor rbx, rdi
        ret

work:   lea rsi, [rip + buffer]
        mov ecx, ROUNDS
        movabs rax, 0x9e3779b97f4a7c15
        xor ebx, ebx
        xor edx, edx
        mov r8d, 1
        xor r12d, r12d
        xor r14d, r14d
        xor r15d, r15d
loop:   mov r9, rax             # xorshift: the addresses below are spread over 16 KiB
        shl r9, 13
        xor rax, r9
        mov r9, rax
        shr r9, 7
        xor rax, r9
        mov r10d, eax
        and r10d, 0x3ff8
        mov r11, [rsi + r10]
        add r11, rax
        mov [rsi + r10], r11
        add rbx, r11
        lea rdx, [rdx + rbx * 2 + 3]
        imul r8, r8, 31
        add r8d, dword ptr [rsi + 8]
        test ecx, 3
        jnz back
called: call helper
back:   cmp r10d, 64
        jae usual
rare:   sub rdx, rbx
        inc r12
usual:  movzx r13d, bl
        add r14, r13
        adc r15, 0
        push rbx
        pop rbp
        dec ecx
        jnz loop
work_end:
        mov ecx, 0x38f
        xor eax, eax
        xor edx, edx
close:  wrmsr
        xor ecx, ecx
        out 0xf4, al

        .if PAGING
        .data
        .align 4096
pml4:   .quad pdpt + 3
        .zero 4088
pdpt:   .quad pd + 3
        .zero 4088
pd:     .quad pt + 3
        .zero 4088
        .endif
        .bss
        .align 64
buffer: .zero 16384
        .if PAGING
        .zero 64
stack_end:
        .align 4096
pt:     .zero 4096
        .endif
