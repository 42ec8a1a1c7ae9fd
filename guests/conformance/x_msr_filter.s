# An MSR filter of the VMM: what it denies is #GP and changes nothing, by range, access and bit of the range.
#
# A register that passes exits where it is denied, for that access alone.
#
#: row X-msr-filter
#: args --msr-filter x_msr_filter.toml
#: modes emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: mem64(failures) == 0
#: expect all: mem64(checks) == 13
#: expect passthrough: exits.MSR_WRITE == 2 + 1
#: expect passthrough: exits.MSR_READ == 1

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

# The write must raise `vector`; what is read then is `found`.
        .macro try msr, value, vector, found
        mov eax, \value
        wrmsr_safe \msr
        judge_vector \vector
        rdmsr_safe \msr
        judge_vector 0
        rdmsr_at \msr
        judge \found
        .endm

        .text
        .globl _start
_start:
        plain_setup
        case 1                          # the first and the last of a range, and what its bitmap allows
        try IA32_PMC0, 5, GENERAL_PROTECTION, 0
        try IA32_PMC1, 6, 0, 6
        try IA32_PMC2, 7, GENERAL_PROTECTION, 0
        case 2                          # both accesses
        mov eax, 8
        wrmsr_safe IA32_FIXED_CTR1
        judge_vector GENERAL_PROTECTION
        rdmsr_safe IA32_FIXED_CTR1
        judge_vector GENERAL_PROTECTION
        case 3                          # RDPMC is no access to an MSR
        rdpmc_safe RDPMC_FIXED + 1
        judge_vector 0
        rdpmc_at 1
        judge 6
        debug_exit 0
        conformance_kit
