# A fixed counter written with more than its width: silicon raises #GP, KVM keeps what fits.
#
# All 48 bits at once are fine everywhere. With bit 48 beside them silicon faults and keeps the old value;
# the emulated vPMU has no check there, and masks.
#
#: row X-fixed-width
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: mem64(full) == 0xffffffffffff
#: expect bare passthrough: mem64(faults) == 2
#: expect emulated: mem64(faults) == 0
#: expect bare passthrough: mem64(wide) == 0xffffffffffff
#: expect emulated: mem64(wide) == 5
#: expect bare passthrough: fixed2 == 7
#: expect emulated: fixed2 == 6

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .macro attempt msr, low, high
        mov ecx, \msr
        mov eax, \low
        mov edx, \high
        safely wrmsr
        count_gp faults
        .endm

        .text
        .globl _start
_start:
        safe_setup
        wrmsr_const IA32_FIXED_CTR0, 0xffffffffffff
        rdpmc_to full, RDPMC_FIXED
        attempt IA32_FIXED_CTR0, 5, 1 << 16
        rdpmc_to wide, RDPMC_FIXED
        wrmsr_const IA32_FIXED_CTR2, 7
        attempt IA32_FIXED_CTR2, 6, 1 << 31
        debug_exit 0

        .bss
        .balign 8
full:   .zero 8
wide:   .zero 8
faults: .zero 8
        conformance_kit
