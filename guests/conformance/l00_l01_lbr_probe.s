# Are there branch records, and in which registers? A guest asks LBR_FMT first, and has nothing to test
# where it is 0; and it writes 0 to the first record of each family there has been: 0x40 of Core, 0x680
# since Nehalem. What is not there raises #GP. Ice Lake has those of Skylake; KVM gives them
# to guests only if the VMM asks.
#
#: row L0 L1
#: upstream x86/pmu_lbr.c main
#: cpu icx
#: modes none bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect bare: mem64(format) == 5
#: expect none emulated passthrough: mem64(format) == 0
#: expect all: mem64(core_from) == GENERAL_PROTECTION
#: expect all: mem64(core_to) == GENERAL_PROTECTION
#: expect bare: mem64(from) == 0
#: expect bare: mem64(to) == 0
#: expect none emulated passthrough: mem64(from) == GENERAL_PROTECTION
#: expect none emulated passthrough: mem64(to) == GENERAL_PROTECTION

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ CORE_FROM, 0x40
        .equ CORE_TO, 0x60
        .equ CPUID_PDCM, 15             # bit of CPUID.1:ECX
        .equ FORMAT, 0x3f

        .macro probe msr, into
        xor eax, eax
        wrmsr_safe \msr
        mov [rip + \into], r9
        .endm

        .text
        .globl _start
_start:
        safe_setup
        mov eax, 1
        cpuid
        bt ecx, CPUID_PDCM
        jnc 1f
        rdmsr_at IA32_PERF_CAPABILITIES
        and eax, FORMAT
        mov [rip + format], rax
1:      probe CORE_FROM, core_from
        probe CORE_TO, core_to
        probe MSR_LASTBRANCH_0_FROM_IP, from
        probe MSR_LASTBRANCH_0_TO_IP, to
        debug_exit 0

        .bss
        .balign 8
format: .zero 8
core_from:
        .zero 8
core_to:
        .zero 8
from:   .zero 8
to:     .zero 8
        conformance_kit
