# What a counter makes of a value: its first address takes 32 bits and extends their sign, whatever stands
# above them; its full-width address takes every bit, and #GP if one is beyond the width. RDMSR gives the
# whole counter by both.
#
# Cases: 1 to 4 a value by the first address, read by both; 5 to 7 by the full-width address; 8 one that
# is too wide, 9 and 10 which leaves the counter as it was.
#
#: row P21 P22
#: upstream x86/pmu.c check_gp_counters_write_width
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: mem64(checks) == COUNTERS * (4 * 2 + 3 * 2 + 3)
#: expect all: mem64(first_bad) == 0
#: expect all: mem64(failures) == 0
#: expect all: pmc7 == 0xffffa3456789

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ COUNTERS, 8
        .equ VALUE_64, 0xffffff0123456789

        .text
        .globl _start
_start:
        safe_setup
        pmu_setup
        xor r12d, r12d
counter:
        mov r15d, IA32_PMC0
        lea rbx, [rip + legacy]
        mov ebp, 1
by_legacy:
        mov rax, [rbx]
        wrmsr_at r15 + r12
        call read_both
        add rbx, 16
        inc ebp
        cmp ebp, 4
        jbe by_legacy

        cmp qword ptr [rip + full_writes], 0
        je next
        mov r15d, IA32_A_PMC0
by_full:
        mov rax, [rbx]
        and rax, [rip + gp_mask]
        wrmsr_at r15 + r12
        call read_both
        add rbx, 16
        inc ebp
        cmp ebp, 7
        jbe by_full

        mov rax, VALUE_64
        wrmsr_safe r15 + r12
        case 8
        judge_vector GENERAL_PROTECTION
        sub rbx, 16
        mov ebp, 9
        call read_both
next:
        next_counter counter
        debug_exit 0

        # The counter must be [rbx + 8], by both of its addresses.
read_both:
        mov r13, [rbx + 8]
        and r13, [rip + gp_mask]
        case ebp
        rdmsr_at r12 + IA32_PMC0
        judge r13
        cmp qword ptr [rip + full_writes], 0
        je 1f
        rdmsr_at r12 + IA32_A_PMC0
        judge r13
1:      ret

        .data
        .balign 8
legacy: # written, and what it becomes
        .quad 0x23456789, 0x23456789
        .quad 0xff0123456789, 0x23456789
        .quad VALUE_64, 0x23456789
        .quad 0xa3456789, 0xffffffffa3456789
        # full width
        .quad 0x23456789, 0x23456789
        .quad 0xff0123456789, 0xff0123456789
        .quad 0xffffa3456789, 0xffffa3456789
        conformance_kit
