# RDPMC in fast mode (bit 31 of ECX): an architectural PMU has none, so #GP, and no register changes.
# Cases: 1 general-purpose, 2 fixed counters, each followed by one for EAX and EDX.
#
#: row P9 P11 X-fast-rdpmc
#: upstream x86/pmu.c check_rdpmc
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect bare: mem64(checks) == 2 * (8 + 4)
#: expect emulated passthrough: mem64(checks) == 2 * (8 + 3)
#: expect all: mem64(first_bad) == 0
#: expect all: mem64(failures) == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ UNTOUCHED, 0x1122334455667788

        .macro fast_read number, kind, select
        mov ebx, \select
        xor r12d, r12d
1:      lea esi, [rbx + r12]
        mov rax, UNTOUCHED
        mov rdx, rax
        shr rdx, 32
        rdpmc_safe rsi
        shl rdx, 32
        or rdx, rax
        mov r13, rdx
        case \number
        judge_vector GENERAL_PROTECTION
        mov rax, r13
        judge UNTOUCHED
        next_counter 1b, \kind
        .endm

        .text
        .globl _start
_start:
        safe_setup
        pmu_setup
        fast_read 1, gp, RDPMC_FAST
        fast_read 2, fixed, RDPMC_FAST | RDPMC_FIXED
        debug_exit 0
        conformance_kit
