# The loop that kvm-unit-tests measures PMU events with.
#
# One streaming load, one add, seven nops and LOOP, ten instructions a round; over a 6.4 MB buffer.
# Between `work` and `work_end` it needs no register and reads only `buffer`.
#: modes bare
#: args --max-insns 10000000
#: expect all: exit_code == 0
#: expect all: pmc0 == PASSES * (ROUNDS * insns(round, again) + insns(pass, round) + insns(again, work_end)) + insns(work, pass) + insns(work_end, close) + 1
#: expect all: fixed0 == pmc0
#: expect all: pmc1 == PASSES * (ROUNDS + 1)
        .intel_syntax noprefix
        .equ ROUNDS, 100000
        .equ PASSES, 1
        .equ COUNTERS, 1
        .globl _start
_start:
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
work:   mov r8d, PASSES
pass:   lea rsi, [rip + buffer]
        mov ecx, ROUNDS
round:  mov rax, [rsi]
        add rsi, 64
        nop; nop; nop; nop; nop; nop; nop
        loop round
again:  dec r8d
        jnz pass
work_end:
        mov ecx, 0x38f
        xor eax, eax
        xor edx, edx
close:  wrmsr
        out 0xf4, al

        .bss
        .align 64
buffer: .zero 64 * ROUNDS
