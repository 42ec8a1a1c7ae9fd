# C9 and C10: a fixed counter that is there counts; of one that is not, no control bit can be set.
#
# For each of four fixed counters the guest sets its bit 0 (OS) in FIXED_CTR_CTRL and its bit in
# GLOBAL_CTRL, runs a loop and clears both. Of a counter that the machine lacks these bits are reserved.
#
# Where GLOBAL_CTRL is passed through, silicon checks it, and silicon has more counters than the VM: the
# write is accepted. Nothing counts, for FIXED_CTR_CTRL exits and KVM refuses it.
#
#: row C9 C10
#: upstream pmu_counters_test.c guest_test_fixed_counters
#: args --guest pmu.fixed=2
#: modes bare none emulated passthrough mediated
#: expect all: exit_code == 0
#: expect bare: mem64(local_set) == 0b1111
#: expect emulated passthrough: mem64(local_set) == 0b11
#: expect none: mem64(local_set) == 0
#: expect bare passthrough: mem64(global_set) == 0b1111
#: expect emulated: mem64(global_set) == 0b11
#: expect none: mem64(global_set) == 0
# Instructions; then cycles, reference cycles and slots: not 0, and the machine issues four slots a cycle.
#: expect bare emulated passthrough: mem64(counts) == insns(opened, again) + ROUNDS * insns(again, done) + insns(done, closed)
#: expect bare emulated passthrough: mem64(counts + 8) > ROUNDS / 4
#: expect bare: mem64(counts + 16) > ROUNDS / 4
#: expect bare: mem64(counts + 24) > ROUNDS
#: expect none: mem64(counts) == 0
#: expect emulated passthrough none: mem64(counts + 16) == 0
#: expect emulated passthrough none: mem64(counts + 24) == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ ROUNDS, 10

        .text
        .globl _start
_start:
        safe_setup
        lea r12, [rip + counts]
        mov r13d, FIXED0_OS
        mov r15d, 1
        xor ebx, ebx
next:
        lea ecx, [rbx + IA32_FIXED_CTR0]
        xor eax, eax
        xor edx, edx
        safely wrmsr
        mov ecx, IA32_FIXED_CTR_CTRL
        mov eax, r13d
        safely wrmsr
        bit_if_ok local_set

        mov ecx, IA32_PERF_GLOBAL_CTRL
        xor eax, eax
        mov edx, r15d
        lea r11, [rip + opened]
        xor r9d, r9d
        wrmsr
opened:
        mov ecx, ROUNDS
again:
        loop again
done:
        mov ecx, IA32_PERF_GLOBAL_CTRL
        xor eax, eax
        xor edx, edx
        lea r11, [rip + closed]
        wrmsr
closed:
        xor r11d, r11d
        bit_if_ok global_set

        lea ecx, [rbx + IA32_FIXED_CTR0]
        xor eax, eax
        xor edx, edx
        safely rdmsr
        shl rdx, 32
        or rax, rdx
        mov [r12 + rbx * 8], rax
        mov ecx, IA32_FIXED_CTR_CTRL
        xor eax, eax
        xor edx, edx
        safely wrmsr
        shl r13d, 4
        add r15d, r15d
        inc ebx
        cmp ebx, 4
        jb next
        debug_exit 0

        .bss
        .balign 8
local_set: .zero 8
global_set: .zero 8
counts: .zero 32
        conformance_kit
