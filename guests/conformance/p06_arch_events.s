# Every architectural event on every general-purpose counter, by both addresses of the counters:
# instructions and branches exactly, the others within bounds that hold for any processor.
#
# Ten turns before, with no counter on, warm up the caches. A case is (event in the order of CPUID, from
# 1) << 8 | counter.
#
#: row P6 P5
#: cpu spr
#: upstream x86/pmu.c warm_up, check_gp_counters
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: mem64(checks) == 2 * COUNTERS * EVENTS
#: expect all: mem64(first_bad) == 0
#: expect all: mem64(failures) == 0
# The last turn of each event was on the last counter, by its full-width address.
#: expect all: mem64(counts + 8) == 10 * ROUNDS + 17
#: expect all: mem64(counts + 40) == ROUNDS + 2

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .equ ROUNDS, 100
        .equ COUNTERS, 8
        .equ EVENTS, 7
        .include "conformance.inc"

        .text
        .globl _start
_start:
        safe_setup
        pmu_setup
        mov ebx, 10
warm_up:
        xor eax, eax
        measure
        dec ebx
        jnz warm_up

        xor r12d, r12d
        mov r15d, IA32_PMC0
alias:
counter:
        lea rbx, [rip + events]
        mov r13d, 1
event:
        xor edi, edi
        start_gp "[rbx]"
        global_bit
        measure
        stop_gp
        lea rcx, [rip + counts]
        mov [rcx + r13 * 8 - 8], rax
        case r13d
        judge_range [rbx + 8], [rbx + 16]
        add rbx, 24
        inc r13d
        cmp r13d, EVENTS
        jbe event
        next_counter counter
        next_alias alias
        debug_exit 0

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

        .bss
        .balign 8
counts: .zero 8 * EVENTS
        conformance_kit
