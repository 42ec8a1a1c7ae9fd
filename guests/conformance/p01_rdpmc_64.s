# RDPMC of a counter that no processor has: #GP, and no register changes.
#
#: row P1
#: upstream x86/pmu.c check_invalid_rdpmc_gp
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: mem64(vector) == 13
#: expect all: mem64(answer) == UNTOUCHED_EDX << 32 | UNTOUCHED_EAX
#: expect all: mem64(checks) == 1
#: expect all: mem64(failures) == 0
#: expect emulated: exits.RDPMC == 1
#: expect bare passthrough: exits.RDPMC == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ UNTOUCHED_EAX, 0x11223344
        .equ UNTOUCHED_EDX, 0x55667788

        .text
        .globl _start
_start:
        safe_setup
        mov eax, UNTOUCHED_EAX
        mov edx, UNTOUCHED_EDX
        rdpmc_safe 64
        mov [rip + answer], eax
        mov [rip + answer + 4], edx
        mov [rip + vector], r9
        case 1
        judge_vector GENERAL_PROTECTION
        debug_exit 0

        .bss
        .balign 8
vector: .zero 8
answer: .zero 8
        conformance_kit
