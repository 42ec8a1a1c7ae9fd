# Reference cycles against time: of two windows, the one whose loop is ten times as long takes so much
# more time by TSC and so many more reference cycles, in the rate between the two, which is 1 on this
# model (where the event counts the crystal it is not: p02_ref_crystal.s). Only the difference of windows is exact: opening and closing one takes time of its own, and under
# a hypervisor far more.
#
# Cases, << 8 | window: 1 the count is not above the time around it, 2 the general-purpose counter agrees
# with fixed counter 2, which counts the same; 3 the difference between the windows.
#
#: row P2
#: cpu spr
#: upstream x86/pmu.c set_ref_cycle_expectations
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: mem64(checks) == 3 * 2 + 1
#: expect all: mem64(first_bad) == 0
#: expect all: mem64(failures) == 0
#: expect all: mem64(refs + 16) - mem64(refs + 8) >= AT_LEAST
#: expect all: mem64(refs + 16) - mem64(refs + 8) <= AT_MOST

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ TURNS, 300
        .equ MORE_TURNS, 10 * TURNS
        .equ AT_LEAST, (MORE_TURNS - TURNS) / 8         # no model retires more instructions a cycle
        .equ AT_MOST, MORE_TURNS - TURNS
        .equ FIXED_REF, 2

# rax = TSC, once all before is done.
        .macro fenced_rdtsc
        mfence
        lfence
        rdtsc
        lfence
        shl rdx, 32
        or rax, rdx
        .endm

        .text
        .globl _start
_start:
        safe_setup
        pmu_setup
        mov r15d, IA32_PMC0
        xor ebx, ebx                    # window 0 is warm-up
window:
        xor edi, edi
        xor r12d, r12d
        start_gp EVT_CPU_CLK_UNHALTED_REF_TSC_P
        mov r12d, FIXED_REF
        start_fixed
        mov ebp, TURNS
        mov eax, MORE_TURNS
        cmp ebx, 2
        cmove ebp, eax

        fenced_rdtsc
        mov r13, rax
        mov rax, GLOBAL_PMC0 | GLOBAL_FIXED2
        wrmsr_at IA32_PERF_GLOBAL_CTRL
        mov ecx, ebp
1:      loop 1b
        xor eax, eax
        wrmsr_at IA32_PERF_GLOBAL_CTRL
        fenced_rdtsc
        sub rax, r13
        lea rcx, [rip + time]
        mov [rcx + rbx * 8], rax
        mov rbp, rax

        mov r12d, FIXED_REF
        stop_fixed
        mov r13, rax
        xor r12d, r12d
        stop_gp
        lea rcx, [rip + refs]
        mov [rcx + rbx * 8], rax
        mov r12d, ebx
        case 1
        judge_range 1, rbp
        case 2
        judge r13
        inc ebx
        cmp ebx, 3
        jb window

        mov rax, [rip + refs + 16]
        sub rax, [rip + refs + 8]
        mov r13, [rip + time + 16]
        sub r13, [rip + time + 8]
        mov rdi, r13
        lea r9, [r13 + 2]               # both windows begin and end within a cycle
        sub rdi, 2
        case 3
        judge_range rdi, r9
        debug_exit 0

        .bss
        .balign 8
refs: .zero 8 * 3
time:   .zero 8 * 3
        conformance_kit
