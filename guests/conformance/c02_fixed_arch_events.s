# C2, C3, C4: the fixed counters count their events through FIXED_CTR_CTRL and GLOBAL_CTRL.
#
# Here the bit of GLOBAL_CTRL opens and closes the window; OS is the only bit in FIXED_CTR_CTRL. Fixed
# counter 0 counts instructions, exactly 65, in every mode; 1 cycles, 2 reference cycles, 3 slots. KVM
# gives a guest the first three.
#
#: row C2 C3 C4
#: upstream pmu_counters_test.c guest_test_arch_event
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect bare: mem64(measured) == 4
#: expect emulated passthrough: mem64(measured) == 3
#: expect all: mem64(still) == mem64(measured)
#: expect all: mem64(writable) == mem64(measured)
#: expect all: mem64(counts) == 65
#: expect all: mem64(counts) == ROUNDS * insns(round, done) + insns(opened, round) + insns(done, closed)
# 64 of these take a slot at least, four slots are a cycle; ten misses take 200 cycles each.
#: expect all: mem64(counts + 8) > 10 * 200
#: expect all: mem64(counts + 16) > 10 * 200
#: expect bare: mem64(counts + 24) > 10 * 200 * 4
#: expect emulated passthrough: mem64(counts + 24) == 0
#: expect emulated: exits.RDPMC == 3 * 3

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .equ ROUNDS, 10

        .text
        .globl _start
_start:
        mov eax, 0xa                    # how many fixed counters there are: EDX[4:0]
        xor ecx, ecx
        cpuid
        and edx, 31
        jz none
        mov r12d, edx
        mov r8d, FIXED0_OS
        mov r10d, 1
        xor ebx, ebx
next:
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        lea ecx, [rbx + IA32_FIXED_CTR0]
        wrmsr
        mov ecx, IA32_FIXED_CTR_CTRL
        mov eax, r8d
        wrmsr

        lea rsi, [rip + line]
        mov edx, r10d
        xor eax, eax
        mov ecx, IA32_PERF_GLOBAL_CTRL
        mov edi, ecx
        wrmsr
opened:
        mov ecx, ROUNDS
round:
        enter 0, 0
        clflushopt [rsi]
        mfence
        mov eax, [rsi]
        leave
        loop round
done:
        mov ecx, edi
        xor eax, eax
        xor edx, edx
        wrmsr
closed:
        inc qword ptr [rip + measured]
        lea r11, [rbx + RDPMC_FIXED]
        rdpmc_rax r11d
        mov r9, rax
        lea rdi, [rip + counts]
        mov [rdi + rbx * 8], r9
        mov ecx, ROUNDS
1:      loop 1b
        rdpmc_rax r11d
        cmp rax, r9
        jne moved
        inc qword ptr [rip + still]
moved:
        lea ecx, [rbx + IA32_FIXED_CTR0]
        mov eax, 0xdead
        xor edx, edx
        wrmsr
        rdpmc_rax r11d
        cmp rax, 0xdead
        jne not_written
        inc qword ptr [rip + writable]
not_written:
        shl r8d, 4
        add r10d, r10d
        inc ebx
        cmp ebx, r12d
        jb next
none:
        debug_exit 0

        .bss
        .balign 64
line: .zero 64
counts: .zero 32
measured: .zero 8
still: .zero 8
writable: .zero 8
