# Reference cycles where the event counts the crystal, up to Ice Lake: of two windows, the longer one has
# more of them in the rate of CPUID leaf 15H, EBX / EAX TSC cycles for each. A case is 1 << 8.
#
#: row P2
#: cpu icx
#: upstream x86/pmu.c set_ref_cycle_expectations
#: modes bare emulated passthrough
#: expect all: exit_code == 0
#: expect all: mem64(checks) == 1
#: expect all: mem64(first_bad) == 0
#: expect all: mem64(failures) == 0
#: expect all: mem64(rate) == 80
#: expect all: mem64(refs + 16) - mem64(refs + 8) >= AT_LEAST
#: expect all: mem64(refs + 16) - mem64(refs + 8) <= AT_MOST

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ TURNS, 100
        .equ MORE_TURNS, 10000
        .equ AT_LEAST, (MORE_TURNS - TURNS) / 6 / 80    # no model retires more instructions a cycle
        .equ AT_MOST, (MORE_TURNS - TURNS) / 80
        .equ CPUID_TSC, 0x15

        .text
        .globl _start
_start:
        safe_setup
        pmu_setup
        mov eax, CPUID_TSC
        xor ecx, ecx
        cpuid
        mov r10d, eax
        mov eax, ebx
        xor edx, edx
        div r10d
        mov [rip + rate], rax

        mov r15d, IA32_PMC0
        xor r12d, r12d
        xor ebx, ebx                    # window 0 is warm-up
window:
        xor edi, edi
        start_gp EVT_CPU_CLK_UNHALTED_REF_TSC_P
        mov ebp, TURNS
        mov eax, MORE_TURNS
        cmp ebx, 2
        cmove ebp, eax
        lfence
        rdtsc
        shl rdx, 32
        or rax, rdx
        mov r13, rax
        mov eax, GLOBAL_PMC0
        wrmsr_at IA32_PERF_GLOBAL_CTRL
        mov ecx, ebp
1:      loop 1b
        xor eax, eax
        wrmsr_at IA32_PERF_GLOBAL_CTRL
        lfence
        rdtsc
        shl rdx, 32
        or rax, rdx
        sub rax, r13
        lea rcx, [rip + time]
        mov [rcx + rbx * 8], rax
        stop_gp
        lea rcx, [rip + refs]
        mov [rcx + rbx * 8], rax
        inc ebx
        cmp ebx, 3
        jb window

        mov rax, [rip + refs + 16]
        sub rax, [rip + refs + 8]
        mul qword ptr [rip + rate]
        mov r13, [rip + time + 16]
        sub r13, [rip + time + 8]
        mov rcx, [rip + rate]           # both windows begin and end within a cycle of the crystal
        lea r9, [r13 + rcx * 2]
        add rcx, rcx
        mov rdi, r13
        sub rdi, rcx
        case 1
        judge_range rdi, r9
        debug_exit 0

        .bss
        .balign 8
rate:   .zero 8
refs:   .zero 8 * 3
time:   .zero 8 * 3
        conformance_kit
