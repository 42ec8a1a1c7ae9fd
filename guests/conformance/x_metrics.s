# PERF_METRICS: fractions of fixed counter 3, by RDMSR and by RDPMC of type 0x2000.
#
# While GLOBAL_CTRL[48] is set the slots that fixed counter 3 counts are divided into four fractions, in
# 1/255, which add up to all of them: retiring, bad speculation, front-end bound, back-end bound. Without that
# bit nothing is divided. Fences leave most slots to the back end, nops fill them. A write to fixed counter 3
# clears the register, and it can be written itself. RDPMC gives the same value; it has index 0 only.
#
# KVM offers none of it: the MSR is #GP. The emulated vPMU raises #GP for GLOBAL_CTRL[48] and for the RDPMC,
# too. Passed through, silicon accepts the bit and gives 0 for the RDPMC, for it counts no slots for the guest.
#
#: row X-metrics
#: cpu spr
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect bare: mem64(undivided) == 0
#: expect bare: (mem64(fences) & 0xff) + (mem64(fences) >> 8 & 0xff) + (mem64(fences) >> 16 & 0xff) + (mem64(fences) >> 24 & 0xff) == 0xff
#: expect bare: (mem64(nops) & 0xff) + (mem64(nops) >> 8 & 0xff) + (mem64(nops) >> 16 & 0xff) + (mem64(nops) >> 24 & 0xff) == 0xff
#: expect bare: mem64(fences) & 0xff <= 10
#: expect bare: mem64(fences) >> 24 & 0xff >= 240
#: expect bare: mem64(nops) & 0xff >= 100
#: expect bare: mem64(by_rdpmc) == mem64(nops)
#: expect bare: mem64(cleared) == 0
#: expect bare: mem64(written) == 0x4040403f
#: expect emulated passthrough: mem64(fences) == UNREAD
#: expect emulated passthrough: mem64(written) == UNREAD
#: expect emulated: mem64(by_rdpmc) == UNREAD
#: expect passthrough: mem64(by_rdpmc) == 0
# Two windows with GLOBAL_CTRL[48], six accesses to the MSR, an RDPMC of index 0 and one of index 1.
#: expect bare: mem64(faults) == 1
#: expect emulated: mem64(faults) == 2 + 6 + 1 + 1
#: expect passthrough: mem64(faults) == 6 + 1

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ UNREAD, 0x5555
        .equ EN_METRICS_HIGH, 1 << 16           # GLOBAL_CTRL[48]
        .equ FIXED3_HIGH, 1 << 3                # GLOBAL_CTRL[35]
        .equ RDPMC_METRICS, 0x20000000

        .macro read instruction, index, where
        mov ecx, \index
        mov eax, UNREAD
        xor edx, edx
        safely \instruction
        count_gp faults
        shl rdx, 32
        or rax, rdx
        mov [rip + \where], rax
        .endm

        .macro open high
        mov ecx, IA32_PERF_GLOBAL_CTRL
        xor eax, eax
        mov edx, \high
        safely wrmsr
        count_gp faults
        .endm

        .macro clear
        mov ecx, IA32_FIXED_CTR3
        xor eax, eax
        xor edx, edx
        safely wrmsr                            # KVM gives the guest no such counter
        .endm

        .text
        .globl _start
_start:
        safe_setup
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        mov ecx, IA32_FIXED_CTR_CTRL
        mov eax, FIXED3_OS
        safely wrmsr
        clear

        # Slots are counted and not divided.
        mov ecx, IA32_PERF_GLOBAL_CTRL
        xor eax, eax
        mov edx, FIXED3_HIGH
        safely wrmsr
        mfence
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        read rdmsr, MSR_PERF_METRICS, undivided

        clear
        open EN_METRICS_HIGH | FIXED3_HIGH
        .rept 20
        mfence
        .endr
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        read rdmsr, MSR_PERF_METRICS, fences

        clear
        open EN_METRICS_HIGH | FIXED3_HIGH
        .rept 500
        nop
        .endr
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        read rdmsr, MSR_PERF_METRICS, nops
        read rdpmc, RDPMC_METRICS, by_rdpmc
        read rdpmc, RDPMC_METRICS | 1, nowhere

        clear
        read rdmsr, MSR_PERF_METRICS, cleared
        mov ecx, MSR_PERF_METRICS
        mov eax, 0x4040403f
        xor edx, edx
        safely wrmsr
        count_gp faults
        read rdmsr, MSR_PERF_METRICS, written
        debug_exit 0

        .bss
        .balign 8
undivided: .zero 8
fences: .zero 8
nops:   .zero 8
by_rdpmc: .zero 8
nowhere: .zero 8
cleared: .zero 8
written: .zero 8
faults: .zero 8
        conformance_kit
