# RDPMC of counters that do not exist, in ring 0: #GP; where RDPMC exits, after one exit each.
#
# ECX holds a type in its upper half and an index in its lower. Indices beyond the counters there are,
# types that nobody knows, and the bit for fast reads of other processors are all #GP, and #GP leaves
# EAX and EDX alone.
#
#: row X-rdpmc-index
#: modes bare none emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: mem64(faults) == WRONG
#: expect all: mem64(kept) == WRONG
#: expect none emulated: exits.RDPMC == WRONG
#: expect bare passthrough: exits.RDPMC == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ KEPT_EAX, 0x11223344
        .equ KEPT_EDX, 0x55667788
        .equ WRONG, 12

        .text
        .globl _start
_start:
        safe_setup
        xor ebx, ebx
next:
        lea rsi, [rip + wrong]
        mov ecx, [rsi + rbx * 4]
        mov eax, KEPT_EAX
        mov edx, KEPT_EDX
        safely rdpmc
        count_gp faults
        cmp eax, KEPT_EAX
        jne changed
        cmp edx, KEPT_EDX
        jne changed
        inc qword ptr [rip + kept]
changed:
        inc ebx
        cmp ebx, WRONG
        jb next
        debug_exit 0

        .data
        .balign 4
wrong:  .long 64, 8, 63, 0x1234, 0xffff
        .long RDPMC_FIXED | 4, RDPMC_FIXED | 0xffff
        .long 0x00020000, 0x10000000, 0x40010000, RDPMC_FAST, RDPMC_FAST | RDPMC_FIXED

        .bss
        .balign 8
faults: .zero 8
kept:   .zero 8
        conformance_kit
