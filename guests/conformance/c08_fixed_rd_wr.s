# C8: which fixed counters exist, by MSR and by RDPMC.
#
# Each of the four fixed counters there can be is written, read back by RDMSR and RDPMC, and asked for with
# bit 31 of ECX set as well, which no architectural PMU understands. What is not there raises #GP; nothing
# is dropped. Version 2 brought fixed counters; how many there are is CPUID.0AH:EDX[4:0].
#
# KVM knows three of them. Bit i of each word below belongs to counter i.
#
#: row C8
#: upstream pmu_counters_test.c guest_test_fixed_counters
#: args --guest pmu.fixed=2 --set pmu.fixed=3
#: modes bare none emulated passthrough mediated
#: expect all: exit_code == 0
# Of the five accesses to each counter so many raised #GP.
#: expect bare: mem64(faults) == 3 * 1 + 5
#: expect none: mem64(faults) == 4 * 5
#: expect emulated: mem64(faults) == 2 * 1 + 2 * 5
#: expect passthrough: mem64(faults) == 2 * 1 + 4 + 5
#: expect bare: mem64(written) == 0b111
#: expect emulated passthrough: mem64(written) == 0b11
#: expect none: mem64(written) == 0
#: expect bare: mem64(read_back) == 0b111
#: expect emulated passthrough: mem64(read_back) == 0b11
#: expect none: mem64(read_back) == 0
#: expect bare: mem64(rdpmc_gave) == 0b111
#: expect emulated passthrough: mem64(rdpmc_gave) == 0b11
#: expect none: mem64(rdpmc_gave) == 0
# Where RDPMC does not exit, silicon answers for the counter that the VM lacks: KVM has set it to 0.
#: expect bare none emulated: mem64(rdpmc_zero) == 0
#: expect passthrough: mem64(rdpmc_zero) == 0b100
#: expect all: mem64(fast_gave) == 0
#: expect bare passthrough: exits.RDPMC == 0
#: expect none emulated: exits.RDPMC == 2 * 4

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ PATTERN, 0xffff
        .equ FAST, 1 << 31

        .macro access insn
        safely \insn
        count_gp faults
        .endm

        .text
        .globl _start
_start:
        safe_setup
        xor ebx, ebx
next:
        lea ecx, [rbx + IA32_FIXED_CTR0]
        mov eax, PATTERN
        xor edx, edx
        access wrmsr
        bit_if_ok written
        access rdmsr
        bit_if_gave read_back, PATTERN

        lea ecx, [rbx + RDPMC_FIXED]
        access rdpmc
        push rax
        push rdx
        bit_if_gave rdpmc_gave, PATTERN
        pop rdx
        pop rax
        bit_if_gave rdpmc_zero, 0
        mov ecx, ebx
        or ecx, RDPMC_FIXED | FAST
        access rdpmc
        bit_if_ok fast_gave

        lea ecx, [rbx + IA32_FIXED_CTR0]
        xor eax, eax
        xor edx, edx
        access wrmsr
        inc ebx
        cmp ebx, 4
        jb next
        debug_exit 0

        .bss
        .balign 8
written: .zero 8
read_back: .zero 8
rdpmc_gave: .zero 8
rdpmc_zero: .zero 8
fast_gave: .zero 8
faults: .zero 8
        conformance_kit
