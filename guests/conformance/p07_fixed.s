# The fixed counters: instructions exactly, cycles, reference cycles and slots within bounds that hold for
# any processor. KVM gives a guest three of the four. A case is 1 << 8 | counter.
#
#: row P7
#: upstream x86/pmu.c check_fixed_counters
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect bare: mem64(checks) == 4
#: expect emulated passthrough: mem64(checks) == 3
#: expect all: mem64(first_bad) == 0
#: expect all: mem64(failures) == 0
#: expect all: fixed0 == 10 * ROUNDS + 17

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

        lea rbx, [rip + bounds]
        xor r12d, r12d
counter:
        xor edi, edi
        start_fixed
        global_bit fixed
        measure
        stop_fixed
        case 1
        judge_range [rbx], [rbx + 8]
        add rbx, 16
        next_counter counter, fixed
        debug_exit 0

        .data
        .balign 8
bounds: # at least, at most
        .quad MEASURED, MEASURED
        .quad ROUNDS, 30 * ROUNDS
        .quad ROUNDS / 10, 30 * ROUNDS
        .quad MEASURED, 6 * 30 * ROUNDS # six slots a cycle are the most that any model has
        conformance_kit
