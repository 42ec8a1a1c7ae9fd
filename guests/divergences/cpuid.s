# CPUID says what KVM gives a guest: version 2 of the PMU, three fixed counters.
#
#: modes bare emulated
#: expect bare: rsi == 0x8300805
#: expect emulated: rsi == 0x8300802

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        mov eax, 0xa
        cpuid
        mov esi, eax
        debug_exit 0
