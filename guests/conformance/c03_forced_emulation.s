# C3 with forced emulation: 65 instructions and 10 branches, half of them executed by KVM.
#
# The program of C1, with the forced emulation prefix before ENTER, LEAVE, LOOP and the three instructions
# that prepare the closing write. KVM executes those, and counts each as one instruction in software, LOOP as
# a branch besides; the hardware counts the others. The prefix itself counts nowhere. The totals are those of
# C3 to the last one.
#
#: row C3
#: upstream pmu_counters_test.c guest_test_arch_event, KVM_FEP
#: modes emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: mem64(instructions_gp) == 65
#: expect all: mem64(branches_gp) == 10
#: expect all: mem64(instructions_fixed) == 65
# 33 instructions are forced in each of the three counts.
#: expect all: exits.EXCEPTION_NMI == 3 * (3 * ROUNDS + 3)
#: expect all: global_status == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .equ ROUNDS, 10

        # Write eax to MSR ecx, run, write 0 to it.
        .macro count
        mov edi, ecx
        wrmsr
        mov ecx, ROUNDS
1:      FEP
        enter 0, 0
        clflushopt [rsi]
        mfence
        mov eax, [rsi]
        FEP
        leave
        FEP
        loop 1b
        FEP
        mov ecx, edi
        FEP
        xor eax, eax
        FEP
        xor edx, edx
        wrmsr
        .endm

        .text
        .globl _start
_start:
        lea rsi, [rip + line]
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0 | GLOBAL_PMC1
        mov ecx, IA32_PERFEVTSEL0
        mov eax, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_EN
        count
        rdpmc_to instructions_gp, 0

        mov ecx, IA32_PERFEVTSEL1
        mov eax, EVT_BR_INST_RETIRED_ALL_BRANCHES | EVTSEL_OS | EVTSEL_EN
        xor edx, edx
        count
        rdpmc_to branches_gp, 1

        wrmsr_const IA32_FIXED_CTR_CTRL, FIXED0_OS
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        mov ecx, IA32_PERF_GLOBAL_CTRL
        xor eax, eax
        mov edx, 1
        count
        rdpmc_to instructions_fixed, RDPMC_FIXED
        debug_exit 0

        .bss
        .balign 64
line:   .zero 64
instructions_gp: .zero 8
branches_gp: .zero 8
instructions_fixed: .zero 8
