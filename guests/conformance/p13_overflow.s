# Overflow of every general-purpose counter and of fixed counter 0: preset so that the measured loop ends
# at exactly 1, it sets its bit of GLOBAL_STATUS, STATUS_RESET clears the bit, and the interrupt that was
# asked for comes when interrupts are let in again: taking the status back does not take it back.
# With INT and without, by both addresses.
#
# Cases: 1 the loop counts right, 13 final value, 14 status, 15 status after the reset, 16 interrupts, each
# << 8 | counter; 17 to 20 the same without INT; fixed counter 0 stands behind the last counter.
#
#: row P13 P14 P15 P16
#: upstream x86/pmu.c check_counter_overflow
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: mem64(checks) == 2 * (1 + (COUNTERS + 1) * 2 * 4)
#: expect all: mem64(first_bad) == 0
#: expect all: mem64(failures) == 0
#: expect all: pmis == 2 * (COUNTERS + 1)
#: expect all: pmc7 == 1
#: expect all: fixed0 == 1
#: expect all: global_status == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .equ ROUNDS, 100
        .equ COUNTERS, 8
        .include "conformance.inc"

        .text
        .globl _start
_start:
        safe_setup
        pmi_setup
        pmu_setup

        mov r15d, IA32_PMC0
alias:
        xor r12d, r12d
        xor edi, edi
        start_gp EVT_INST_RETIRED_ANY_P
        global_bit
        measure
        stop_gp
        case 1
        mov rbp, rax                    # what the loop counts
        judge MEASURED

counter:
        mov ebx, 13                     # with INT
        mov edi, 1
        sub rdi, rbp
        call full_width
        start_gp EVT_INST_RETIRED_ANY_P, EVTSEL_INT
        call overflow
        mov ebx, 17                     # without
        mov edi, 1
        sub rdi, rbp
        call full_width
        start_gp EVT_INST_RETIRED_ANY_P
        call overflow
        next_counter counter

        mov ebx, 13
        mov edi, 1
        sub rdi, rbp
        and rdi, [rip + fixed_mask]
        start_fixed FIXED_COUNTING | FIXED0_PMI
        call fixed_overflow
        mov ebx, 17
        mov edi, 1
        sub rdi, rbp
        and rdi, [rip + fixed_mask]
        start_fixed
        call fixed_overflow
        next_alias alias
        debug_exit 0

        # By the full-width address a counter takes what fits and no more.
full_width:
        mov rax, rdi
        and rax, [rip + gp_mask]
        cmp r15d, IA32_A_PMC0
        cmove rdi, rax
        ret

overflow:
        global_bit
        mov r13, rax
        measure
        stop_gp
        jmp judge_overflow
fixed_overflow:
        global_bit fixed
        mov r13, rax
        measure
        stop_fixed
        mov r12, [rip + gp]
        call judge_overflow
        xor r12d, r12d
        ret

        # rax = final value, r13 = the bit of the counter, ebx = the first of four cases.
judge_overflow:
        case ebx
        judge 1
        lea eax, [rbx + 1]
        case eax
        rdmsr_at IA32_PERF_GLOBAL_STATUS
        judge r13
        lea eax, [rbx + 2]
        case eax
        mov rax, r13
        wrmsr_at IA32_PERF_GLOBAL_STATUS_RESET
        rdmsr_at IA32_PERF_GLOBAL_STATUS
        judge 0
        lea eax, [rbx + 3]
        case eax
        check_irq
        xor edx, edx
        cmp ebx, 13
        sete dl
        judge rdx
        ret
        conformance_kit
