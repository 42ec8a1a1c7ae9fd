# C7: which general-purpose counters exist, through both addresses and through RDPMC.
#
# Each counter i of the eight there can be is written, read back by RDMSR and RDPMC, and asked for with
# bit 31 of ECX set (the "fast" RDPMC of other processors, which an architectural PMU does not have). A
# counter that is not there raises #GP, with one exception: KVM hides the absence of 0xC1 and 0xC2, which
# every P6 has had; writes are dropped and reads give 0. So a VM with one counter shows all three cases.
#
# Bit i of each word below belongs to counter i.
#
#: row C7
#: upstream pmu_counters_test.c guest_rd_wr_counters
#: args --guest pmu.gp=1
#: modes bare none emulated passthrough mediated
#: expect all: exit_code == 0
# Of the eight accesses to each counter so many raised #GP.
#: expect bare: mem64(faults) == 8 * 1
#: expect none: mem64(faults) == 2 * 5 + 6 * 8
#: expect emulated: mem64(faults) == 1 + 5 + 6 * 8
#: expect passthrough: mem64(faults) == 1 + 4 + 6 * 7
# The legacy address.
#: expect bare: mem64(legacy_written) == 0xff
#: expect none emulated passthrough: mem64(legacy_written) == 0x03
#: expect bare: mem64(legacy_read_back) == 0xff
#: expect emulated passthrough: mem64(legacy_read_back) == 0x01
#: expect none: mem64(legacy_read_back) == 0
#: expect emulated passthrough: mem64(legacy_read_zero) == 0x02
#: expect none: mem64(legacy_read_zero) == 0x03
#: expect bare: mem64(legacy_read_zero) == 0
# The full-width address: nothing is dropped there.
#: expect bare: mem64(full_written) == 0xff
#: expect emulated passthrough: mem64(full_written) == 0x01
#: expect none: mem64(full_written) == 0
#: expect bare: mem64(full_read_back) == 0xff
#: expect emulated passthrough: mem64(full_read_back) == 0x01
#: expect none: mem64(full_read_back) == 0
# RDPMC never drops. Where it does not exit, silicon answers, and it has all eight: 0 in what the VM lacks.
#: expect bare: mem64(rdpmc_gave) == 0xff
#: expect emulated passthrough: mem64(rdpmc_gave) == 0x01
#: expect none: mem64(rdpmc_gave) == 0
#: expect bare none emulated: mem64(rdpmc_zero) == 0
#: expect passthrough: mem64(rdpmc_zero) == 0xfe
#: expect all: mem64(fast_gave) == 0
#: expect bare passthrough: exits.RDPMC == 0
#: expect none emulated: exits.RDPMC == 2 * 8

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
        lea ecx, [rbx + IA32_PMC0]
        mov eax, PATTERN
        xor edx, edx
        access wrmsr
        bit_if_ok legacy_written
        access rdmsr
        push rax
        push rdx
        bit_if_gave legacy_read_back, PATTERN
        pop rdx
        pop rax
        bit_if_gave legacy_read_zero, 0

        mov ecx, ebx
        access rdpmc
        push rax
        push rdx
        bit_if_gave rdpmc_gave, PATTERN
        pop rdx
        pop rax
        bit_if_gave rdpmc_zero, 0
        mov ecx, ebx
        or ecx, FAST
        access rdpmc
        bit_if_ok fast_gave

        lea ecx, [rbx + IA32_A_PMC0]
        mov eax, PATTERN + 1
        xor edx, edx
        access wrmsr
        bit_if_ok full_written
        access rdmsr
        bit_if_gave full_read_back, PATTERN + 1

        # Leave the counter at 0 for whoever comes next.
        lea ecx, [rbx + IA32_A_PMC0]
        xor eax, eax
        xor edx, edx
        access wrmsr
        lea ecx, [rbx + IA32_PMC0]
        access wrmsr
        inc ebx
        cmp ebx, 8
        jb next
        debug_exit 0

        .bss
        .balign 8
legacy_written: .zero 8
legacy_read_back: .zero 8
legacy_read_zero: .zero 8
full_written: .zero 8
full_read_back: .zero 8
rdpmc_gave: .zero 8
rdpmc_zero: .zero 8
fast_gave: .zero 8
faults: .zero 8
        conformance_kit
