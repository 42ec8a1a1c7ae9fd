# C7 and C8 with forced emulation: RDPMC answered by KVM's emulator, which knows the VM's counters only.
#
# Counters that the VM has give their value; those that it lacks raise #GP, also where a plain RDPMC does not
# exit and silicon would have given 0. Fast mode is #GP as always.
#
#: row C7 C8
#: upstream pmu_counters_test.c test_rdpmc, KVM_FEP
#: args --guest pmu.gp=3 --guest pmu.fixed=2
#: modes emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: mem64(gp_gave) == 0b111
#: expect all: mem64(fixed_gave) == 0b11
#: expect all: mem64(fast_gave) == 0
# Of eight general-purpose counters five are absent, of four fixed ones two; fast mode is wrong for all eight.
#: expect all: mem64(faults) == 5 + 2 + 8
#: expect all: exits.EXCEPTION_NMI == 8 + 8 + 4
# The emulator does not go through an RDPMC exit.
#: expect all: exits.RDPMC == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ PATTERN, 0x4321

        .macro forced_rdpmc
        lea r11, [rip + 9f]
        xor r9d, r9d
        FEP
        rdpmc
9:      xor r11d, r11d
        count_gp faults
        .endm

        .text
        .globl _start
_start:
        safe_setup
        xor ebx, ebx
next:
        lea ecx, [rbx + IA32_PMC0]
        mov eax, PATTERN
        xor edx, edx
        safely wrmsr
        mov ecx, ebx
        forced_rdpmc
        bit_if_gave gp_gave, PATTERN
        mov ecx, ebx
        or ecx, RDPMC_FAST
        forced_rdpmc
        bit_if_ok fast_gave
        inc ebx
        cmp ebx, 8
        jb next

        xor ebx, ebx
next_fixed:
        lea ecx, [rbx + IA32_FIXED_CTR0]
        mov eax, PATTERN
        xor edx, edx
        safely wrmsr
        lea ecx, [rbx + RDPMC_FIXED]
        forced_rdpmc
        bit_if_gave fixed_gave, PATTERN
        inc ebx
        cmp ebx, 4
        jb next_fixed
        debug_exit 0

        .bss
        .balign 8
gp_gave: .zero 8
fixed_gave: .zero 8
fast_gave: .zero 8
faults: .zero 8
        conformance_kit
