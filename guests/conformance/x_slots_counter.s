# Fixed counter 3: issue slots, four a cycle here, the same as event 0xA4.01 in a general-purpose counter.
#
# It is set by MSR, read by RDPMC, controlled by bits 15:12 of FIXED_CTR_CTRL, enabled by bit 35 of
# GLOBAL_CTRL, and overflows into bit 35 of GLOBAL_STATUS. KVM gives guests of these modes three fixed
# counters (KVM_MAX_NR_INTEL_FIXED_COUNTERS); its fixed_cap is for the mediated vPMU.
#
#: row X-slots-counter
#: modes bare
#: expect all: exit_code == 0
#: expect all: mem64(count) == mem64(beside)
#: expect all: mem64(count) > FENCES * 20 * 4
#: expect all: mem64(thread) - 1 <= mem64(count) / 4
#: expect all: mem64(thread) + 1 >= mem64(count) / 4
#: expect all: mem64(status) == GLOBAL_FIXED3
#: expect all: fixed3 == mem64(count) - (FENCES - 1) * 20 * 4
#: expect all: mem64(written) == 0x123456789abc

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ FENCES, 8
        .equ START, (1 << 48) - (FENCES - 1) * 20 * 4

        .text
        .globl _start
_start:
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_FIXED_CTR3, 0x123456789abc
        rdpmc_to written, RDPMC_FIXED | 3
        wrmsr_const IA32_FIXED_CTR3, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_TOPDOWN_SLOTS_P | EVTSEL_OS | EVTSEL_EN
        wrmsr_const IA32_FIXED_CTR_CTRL, FIXED1_OS | FIXED3_OS
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0 | GLOBAL_FIXED1 | GLOBAL_FIXED3
        .rept FENCES
        mfence
        .endr
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        rdpmc_to beside, 0
        rdpmc_to thread, RDPMC_FIXED | 1
        rdpmc_to count, RDPMC_FIXED | 3

        # The fences before the last one take more slots than are left.
        wrmsr_const IA32_FIXED_CTR3, START
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_FIXED3
        .rept FENCES
        mfence
        .endr
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        rdmsr_rax IA32_PERF_GLOBAL_STATUS
        mov [rip + status], rax
        debug_exit 0

        .bss
        .balign 8
written: .zero 8
count:  .zero 8
beside: .zero 8
thread: .zero 8
status: .zero 8
        conformance_kit
