# Instructions that KVM is forced to emulate count as those that hardware executes: in one window five
# branches through the emulator that are not taken, five CPUIDs, which exit, and a few instructions that
# do neither make 22 instructions and 5 branches. Both counters were preset to reach 0 with that: they
# overflow by counts of software as by counts of hardware.
#
# Each counter in turn counts instructions, and the next one branches, by both addresses; with the prefix
# that forces KVM to emulate, and without it. Without a hypervisor the prefix is an invalid opcode.
# Cases, << 8 | counter of instructions: 1 instructions, 2 branches, 3 both overflow bits and no others;
# 4 to 6 without the prefix.
#
#: row P3 P4
#: upstream x86/pmu.c check_emulated_instr
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect bare: mem64(checks) == 2 * 3 * COUNTERS
#: expect bare: mem64(prefix) == 6
#: expect emulated passthrough: mem64(checks) == 2 * 2 * 3 * COUNTERS
#: expect emulated passthrough: mem64(prefix) == 0
#: expect all: mem64(first_bad) == 0
#: expect all: mem64(failures) == 0
#: expect emulated passthrough: mem64(forced_count) == insns(forced, forced_end) - 5 * insns(one_prefix, one_prefix_end)
#: expect emulated passthrough: mem64(forced_count + 8) == 5
#: expect all: mem64(plain_count) == insns(plain, plain_end)
#: expect all: mem64(plain_count + 8) == 5
#: expect emulated passthrough: exits.CPUID == 2 + 2 * 2 * COUNTERS * 5

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ COUNTERS, 8
        .equ INSTRUCTIONS, 22
        .equ BRANCHES, 5

# Count 22 instructions, of which 5 are branches; the counters are in r13. They are the opener's.
        .macro window prefix
        mov rax, r13
        wrmsr_at IA32_PERF_GLOBAL_CTRL
\prefix:
        mov esi, 1
        mov edi, 1
        cmp esi, edi
        .rept 5
        .ifc \prefix, forced
        FEP
        .endif
        jne \prefix
        .endr
        .rept 5
        mov eax, CPUID_PMU
        cpuid
        .endr
        mov ecx, IA32_PERF_GLOBAL_CTRL
        xor eax, eax
        xor edx, edx
        wrmsr
\prefix\()_end:
        .endm

        .text
        .globl _start
_start:
        safe_setup
        pmu_setup
        lea r11, [rip + 1f]
        xor r9d, r9d
one_prefix:
        FEP
one_prefix_end:
        nop
1:      mov r11d, 0
        mov [rip + prefix], r9

        mov r15d, IA32_PMC0
alias:
        xor r12d, r12d
counter:
        cmp qword ptr [rip + prefix], 0
        jne 1f
        call preset
        window forced
        lea rsi, [rip + forced_count]
        mov ebx, 1
        call judge_counts
1:      call preset
        window plain
        lea rsi, [rip + plain_count]
        mov ebx, 4
        call judge_counts
        next_counter counter
        next_alias alias
        debug_exit 0

        # Counter r12 counts instructions and the next one, rbp, branches; both are about to overflow.
preset:
        lea ebp, [r12 + 1]
        cmp rbp, [rip + gp]
        jb 1f
        xor ebp, ebp
1:      xchg r12, rbp
        mov rdi, -BRANCHES
        call full_width
        start_gp EVT_BR_INST_RETIRED_ALL_BRANCHES
        global_bit
        mov r13, rax
        xchg r12, rbp
        mov rdi, -INSTRUCTIONS
        call full_width
        start_gp EVT_INST_RETIRED_ANY_P
        global_bit
        or r13, rax
        ret

full_width:
        mov rax, rdi
        and rax, [rip + gp_mask]
        cmp r15d, IA32_A_PMC0
        cmove rdi, rax
        ret

        # rsi = where both counts go, ebx = the first of three cases.
judge_counts:
        stop_gp
        add rax, INSTRUCTIONS
        and rax, [rip + gp_mask]
        mov [rsi], rax
        case ebx
        judge INSTRUCTIONS
        xchg r12, rbp
        stop_gp
        xchg r12, rbp
        add rax, BRANCHES
        and rax, [rip + gp_mask]
        mov [rsi + 8], rax
        inc ebx
        case ebx
        judge BRANCHES
        rdmsr_at IA32_PERF_GLOBAL_STATUS
        mov rdi, rax
        wrmsr_at IA32_PERF_GLOBAL_STATUS_RESET
        mov rax, rdi
        inc ebx
        case ebx
        judge r13
        ret

        .bss
        .balign 8
prefix: .zero 8                         # the vector that it raised
forced_count:
        .zero 8 * 2                     # instructions, branches
plain_count:
        .zero 8 * 2
        conformance_kit
