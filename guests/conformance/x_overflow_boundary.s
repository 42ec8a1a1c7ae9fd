# A counter overflows when it becomes 0, and not one event before, when all of its bits are 1.
#
# Cases, << 8 | counter (fixed counter 0 stands last): 1 ends with all bits set, 2 and has not overflowed;
# 3 ends at 0, 4 and has overflowed.
#
#: row X-overflow-boundary
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: mem64(checks) == 2 * 4 * (COUNTERS + 1)
#: expect all: mem64(first_bad) == 0
#: expect all: mem64(failures) == 0
#: expect all: pmc7 == 0
#: expect all: fixed0 == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .equ ROUNDS, 20
        .equ COUNTERS, 8
        .include "conformance.inc"

        .text
        .globl _start
_start:
        safe_setup
        pmu_setup

        mov r15d, IA32_PMC0
alias:
        xor r12d, r12d
counter:
        xor r13d, r13d
        mov rbp, [rip + gp_mask]
        mov rdi, -MEASURED - 1
        call full_width
        start_gp EVT_INST_RETIRED_ANY_P
        call gp_window
        mov ebx, 1
        call judge_it
        global_bit
        mov r13, rax
        xor ebp, ebp
        mov rdi, -MEASURED
        call full_width
        start_gp EVT_INST_RETIRED_ANY_P
        call gp_window
        mov ebx, 3
        call judge_it
        next_counter counter

        xor r13d, r13d
        mov rbp, [rip + fixed_mask]
        mov rdi, -MEASURED - 1
        and rdi, rbp
        start_fixed
        call fixed_window
        mov ebx, 1
        call judge_it
        xor r12d, r12d
        global_bit fixed
        mov r13, rax
        mov rdi, -MEASURED
        and rdi, rbp
        xor ebp, ebp
        start_fixed
        call fixed_window
        mov ebx, 3
        call judge_it
        next_alias alias
        debug_exit 0

full_width:
        mov rax, rdi
        and rax, [rip + gp_mask]
        cmp r15d, IA32_A_PMC0
        cmove rdi, rax
        ret

gp_window:
        global_bit
        measure
        stop_gp
        ret
fixed_window:
        global_bit fixed
        measure
        stop_fixed
        mov r12, [rip + gp]
        ret

        # rax = the counter, which must be rbp, and GLOBAL_STATUS r13, which is cleared.
judge_it:
        case ebx
        judge rbp
        rdmsr_at IA32_PERF_GLOBAL_STATUS
        mov rdi, rax
        wrmsr_at IA32_PERF_GLOBAL_STATUS_RESET
        mov rax, rdi
        inc ebx
        case ebx
        judge r13
        ret
        conformance_kit
