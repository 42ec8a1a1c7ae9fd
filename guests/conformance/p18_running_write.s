# A counter is written while it runs: it goes on from the new value, and what overflows from there is
# reported. Cases: 18 goes on from 0, 19 the status after going on from -1, 20 the value then.
#
#: row P18 P19
#: upstream x86/pmu.c check_running_counter_wrmsr
#: modes bare emulated passthrough
#: expect all: exit_code == 0
#: expect all: mem64(checks) == 2 * COUNTERS * 3
#: expect all: mem64(first_bad) == 0
#: expect all: mem64(failures) == 0
#: expect all: mem64(after_zero) == insns(written, closed)
#: expect all: pmc7 == insns(written_minus_one, closed_minus_one) + WORKED - 1

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .equ ROUNDS, 100
        .equ COUNTERS, 8
        .equ AFTER, 11                  # instructions from the write to the one that stops the counter
        .equ AFTER_MINUS_ONE, 6 + 10 * ROUNDS + 5 - 1
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
        xor edi, edi
        start_gp EVT_INST_RETIRED_ANY_P
        global_bit
        wrmsr_at IA32_PERF_GLOBAL_CTRL
        work
        xor eax, eax
        wrmsr_at r15 + r12
written:
        .rept 6
        nop
        .endr
        xor eax, eax
        wrmsr_at IA32_PERF_GLOBAL_CTRL
closed:
        stop_gp
        mov [rip + after_zero], rax
        case 18
        judge AFTER

        rdmsr_at IA32_PERF_GLOBAL_STATUS
        wrmsr_at IA32_PERF_GLOBAL_STATUS_RESET
        xor edi, edi
        start_gp EVT_INST_RETIRED_ANY_P
        global_bit
        wrmsr_at IA32_PERF_GLOBAL_CTRL
        .rept 6
        nop
        .endr
        mov rax, -1
        cmp r15d, IA32_PMC0
        cmovne rax, [rip + gp_mask]
        wrmsr_at r15 + r12
written_minus_one:
        work
        xor eax, eax
        wrmsr_at IA32_PERF_GLOBAL_CTRL
closed_minus_one:
        rdmsr_at IA32_PERF_GLOBAL_STATUS
        mov r13, rax
        global_bit
        case 19
        mov rdx, rax
        mov rax, r13
        judge rdx
        stop_gp
        case 20
        judge AFTER_MINUS_ONE
        next_counter counter
        next_alias alias
        debug_exit 0

        .bss
        .balign 8
after_zero:
        .zero 8
        conformance_kit
