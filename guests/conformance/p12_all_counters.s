# All counters count at once, each its own event: general-purpose counter i the i-th architectural event
# (the first one again when they run out), and the fixed counters.
# Cases: 1 << 8 | general-purpose counter, 2 << 8 | fixed counter.
#
#: row P12
#: cpu spr
#: upstream x86/pmu.c check_counters_many
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect bare: mem64(checks) == 2 * (8 + 4)
#: expect emulated passthrough: mem64(checks) == 2 * (8 + 3)
#: expect all: mem64(first_bad) == 0
#: expect all: mem64(failures) == 0
#: expect all: pmc1 == 10 * ROUNDS + 17
#: expect all: pmc5 == ROUNDS + 2
#: expect all: fixed0 == pmc1
#: expect all: pmc7 == pmc0
#: expect all: fixed1 == pmc0
#: expect all: fixed2 == pmc2

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .equ ROUNDS, 100
        .include "conformance.inc"

        .text
        .globl _start
_start:
        safe_setup
        pmu_setup
        mov ebx, 3                      # warm-up
warm_up:
        xor eax, eax
        measure
        dec ebx
        jnz warm_up

        mov r15d, IA32_PMC0
alias:
        xor r13d, r13d                  # the bits of GLOBAL_CTRL
        lea rbx, [rip + events]
        xor r12d, r12d
program:
        xor edi, edi
        start_gp "[rbx]"
        global_bit
        or r13, rax
        call next_event
        next_counter program
program_fixed:
        xor edi, edi
        start_fixed
        global_bit fixed
        or r13, rax
        next_counter program_fixed, fixed

        mov rax, r13
        measure

        lea rbx, [rip + events]
counter:
        stop_gp
        case 1
        judge_range [rbx + 8], [rbx + 16]
        call next_event
        next_counter counter
        lea rbx, [rip + fixed_bounds]
fixed_counter:
        stop_fixed
        case 2
        judge_range [rbx], [rbx + 8]
        add rbx, 16
        next_counter fixed_counter, fixed
        next_alias alias
        debug_exit 0

next_event:
        add rbx, 24
        lea rax, [rip + events_end]
        lea rdx, [rip + events]
        cmp rbx, rax
        cmove rbx, rdx
        ret

        .data
        .balign 8
events: # event, at least, at most
        .quad EVT_CPU_CLK_UNHALTED_THREAD_P, ROUNDS, 50 * ROUNDS
        .quad EVT_INST_RETIRED_ANY_P, MEASURED, MEASURED
        .quad EVT_CPU_CLK_UNHALTED_REF_TSC_P, ROUNDS, 30 * ROUNDS
        .quad EVT_LONGEST_LAT_CACHE_REFERENCE, 1, 5 * ROUNDS / 2
        .quad EVT_LONGEST_LAT_CACHE_MISS, 1, ROUNDS
        .quad EVT_BR_INST_RETIRED_ALL_BRANCHES, MEASURED_BRANCHES, MEASURED_BRANCHES
        .quad EVT_BR_MISP_RETIRED_ALL_BRANCHES, 1, ROUNDS / 10
events_end:
fixed_bounds:
        .quad MEASURED, MEASURED
        .quad ROUNDS, 30 * ROUNDS
        .quad ROUNDS / 10, 30 * ROUNDS
        .quad MEASURED, 6 * 30 * ROUNDS
        conformance_kit
