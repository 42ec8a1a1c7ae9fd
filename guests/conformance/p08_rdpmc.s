# RDPMC gives all bits of a counter; a write by the first address of a counter takes 32 bits and extends
# their sign, one by the full-width address takes all. Cases: 1 and 2 general-purpose, 3 and 4 fixed.
#
#: row P8 P10
#: upstream x86/pmu.c check_rdpmc
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect bare: mem64(checks) == 2 * 2 * 8 + 2 * 4
#: expect emulated passthrough: mem64(checks) == 2 * 2 * 8 + 2 * 3
#: expect all: mem64(first_bad) == 0
#: expect all: mem64(failures) == 0
#: expect all: pmc7 == NEGATIVE
#: expect all: fixed2 == NEGATIVE
#: expect emulated: exits.RDPMC == mem64(checks)
#: expect bare passthrough: exits.RDPMC == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ POSITIVE, 0xff0123456789   # as 32 bits
        .equ NEGATIVE, 0xff01a3456789

        .text
        .globl _start
_start:
        safe_setup
        pmu_setup

        mov r15d, IA32_PMC0
alias:
        mov r13, POSITIVE
        mov ebx, 1
value:
        xor r12d, r12d
counter:
        mov rax, r13
        and rax, [rip + gp_mask]
        wrmsr_at r15 + r12
        rdpmc_at r12
        movsxd rdx, r13d                # what the first address makes of it
        cmp r15d, IA32_PMC0
        cmovne rdx, r13
        and rdx, [rip + gp_mask]
        case ebx
        judge rdx
        next_counter counter
        mov r13, NEGATIVE
        inc ebx
        cmp ebx, 2
        jbe value
        next_alias alias

        mov r13, POSITIVE
fixed_value:
        xor r12d, r12d
fixed_counter:
        mov rax, r13
        and rax, [rip + fixed_mask]
        wrmsr_at r12 + IA32_FIXED_CTR0
        rdpmc_at r12 + RDPMC_FIXED
        mov rdx, r13
        and rdx, [rip + fixed_mask]
        case ebx
        judge rdx
        next_counter fixed_counter, fixed
        mov r13, NEGATIVE
        inc ebx
        cmp ebx, 4
        jbe fixed_value
        debug_exit 0
        conformance_kit
