# CMASK: a counter of cycles in which at least two instructions retire, instead of one of instructions, so
# it counts less of the same loop. Instructions that KVM emulates count as one each all the same.
# A case is 1 << 8 | counter.
#
#: row P17
#: upstream x86/pmu.c check_gp_counter_cmask
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: mem64(checks) == 2 * COUNTERS
#: expect all: mem64(first_bad) == 0
#: expect all: mem64(failures) == 0
#: expect all: pmc7 < MEASURED
#: expect all: pmc7 > AT_LEAST

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .equ ROUNDS, 100
        .equ COUNTERS, 8
        .equ AT_LEAST, 2 * ROUNDS
        .equ AT_MOST, 5 * ROUNDS + 8    # half of the instructions
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
        start_gp EVT_INST_RETIRED_ANY_P, 2 << EVTSEL_CMASK_SHIFT
        global_bit
        measure
        stop_gp
        case 1
        judge_range AT_LEAST, AT_MOST
        next_counter counter
        next_alias alias
        debug_exit 0
        conformance_kit
