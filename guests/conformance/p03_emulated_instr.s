# Instructions that KVM is forced to emulate count as those that hardware executes: in one window five
# branches through the emulator that are not taken, five CPUIDs, which exit, and a few instructions that
# do neither make 22 instructions and 5 branches. Both counters were preset to reach 0 with that: they
# overflow by counts of software as by counts of hardware.
#
# Each counter in turn counts instructions, and the next one branches. Without a hypervisor the prefix is
# an invalid opcode, and nothing is judged.
# Cases, << 8 | counter of instructions: 1 instructions, 2 branches, 3 both overflow bits and no others.
#
#: row P3 P4
#: upstream x86/pmu.c check_emulated_instr
#: modes bare emulated passthrough
#: expect all: exit_code == 0
#: expect bare: mem64(checks) == 0
#: expect bare: mem64(prefix) == 6
#: expect emulated passthrough: mem64(checks) == 2 * 3 * COUNTERS
#: expect emulated passthrough: mem64(prefix) == 0
#: expect all: mem64(first_bad) == 0
#: expect all: mem64(failures) == 0
#: expect emulated passthrough: mem64(instructions_counted) == insns(opened, closed) - 5 * insns(forced, forced_insn)
#: expect emulated passthrough: mem64(branches_counted) == BRANCHES
#: expect emulated passthrough: exits.CPUID == 2 + 2 * COUNTERS * 5

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ COUNTERS, 8
        .equ INSTRUCTIONS, 22
        .equ BRANCHES, 5

        .text
        .globl _start
_start:
        safe_setup
        pmu_setup
        lea r11, [rip + 1f]
        xor r9d, r9d
        FEP
        nop
1:      mov r11d, 0
        mov [rip + prefix], r9
        test r9d, r9d
        jnz end

        mov r15d, IA32_PMC0
alias:
        xor r12d, r12d
counter:
        lea ebp, [r12 + 1]              # counts branches
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

        mov rax, r13
        wrmsr_at IA32_PERF_GLOBAL_CTRL
opened:
        mov esi, 1
        mov edi, 1
        cmp esi, edi
forced: FEP
forced_insn:
        jne opened
        .rept BRANCHES - 1
        FEP
        jne opened
        .endr
        .rept 5
        mov eax, CPUID_PMU
        cpuid
        .endr
        mov ecx, IA32_PERF_GLOBAL_CTRL
        xor eax, eax
        xor edx, edx
        wrmsr
closed:
        stop_gp
        add rax, INSTRUCTIONS
        and rax, [rip + gp_mask]
        mov [rip + instructions_counted], rax
        case 1
        judge INSTRUCTIONS
        xchg r12, rbp
        stop_gp
        xchg r12, rbp
        add rax, BRANCHES
        and rax, [rip + gp_mask]
        mov [rip + branches_counted], rax
        case 2
        judge BRANCHES
        rdmsr_at IA32_PERF_GLOBAL_STATUS
        mov rdi, rax
        wrmsr_at IA32_PERF_GLOBAL_STATUS_RESET
        mov rax, rdi
        case 3
        judge r13
        next_counter counter
        next_alias alias
end:
        debug_exit 0

full_width:
        mov rax, rdi
        and rax, [rip + gp_mask]
        cmp r15d, IA32_A_PMC0
        cmove rdi, rax
        ret

        .bss
        .balign 8
prefix: .zero 8                         # the vector that it raised
instructions_counted:
        .zero 8
branches_counted:
        .zero 8
        conformance_kit
