# CMASK, INV, EDGE, PC and ANY: what the upper bits of a selector do to a count of instructions.
#
# With CMASK 1 a counter counts cycles in which at least one instruction retires, with INV beside it the
# other cycles: together they are all unhalted cycles, exactly. EDGE counts how often cycles that retire
# begin. INV without CMASK means nothing, PC (pin control) nothing on this CPU, and ANY (AnyThread) nothing
# where there is one thread. No cycle retires five instructions where four are issued.
#
# KVM counts in software the WRMSR that opens the window: one plain event, whatever CMASK, INV and EDGE
# say. And it has no ANY for a guest.
#
#: row X-cmask-inv-edge
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: fixed0 == insns(opened, closed)
#: expect bare passthrough: pmc0 + pmc1 == pmc2
#: expect emulated: pmc0 + pmc1 == pmc2 + 2
# Each fence retires alone, 20 cycles after what was before it. The nops take a cycle by fours.
#: expect bare passthrough: pmc0 >= NOP_CYCLES + FENCES
#: expect bare passthrough: pmc0 <= NOP_CYCLES + FENCES + 3
#: expect all: pmc1 >= FENCES * 18
# The nops are one run of cycles that retire, each fence begins another, and at most the WRMSR that closes
# the window one more. It does not where it exits; there KVM has added 1 for the one that opened.
#: expect bare passthrough: pmc3 >= 1 + FENCES
#: expect bare passthrough: pmc3 <= 1 + FENCES + 1
#: expect emulated: pmc3 == 1 + FENCES + 1
#: expect all: pmc4 == fixed0
#: expect all: pmc5 == fixed0
#: expect bare passthrough: pmc6 == 0
#: expect emulated: pmc6 == 1
#: expect bare: pmc7 == fixed0
#: expect emulated passthrough: pmc7 == 0
#: expect bare: mem64(faults) == 0
#: expect emulated passthrough: mem64(faults) == 1

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ FENCES, 5
        .equ NOP_CYCLES, 16
        .equ ON, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_EN

        .text
        .globl _start
_start:
        safe_setup
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, ON | 1 << EVTSEL_CMASK_SHIFT
        wrmsr_const IA32_PERFEVTSEL1, ON | 1 << EVTSEL_CMASK_SHIFT | EVTSEL_INV
        wrmsr_const IA32_PERFEVTSEL2, EVT_CPU_CLK_UNHALTED_THREAD_P | EVTSEL_OS | EVTSEL_EN
        wrmsr_const IA32_PERFEVTSEL3, ON | 1 << EVTSEL_CMASK_SHIFT | EVTSEL_EDGE
        wrmsr_const IA32_PERFEVTSEL4, ON | EVTSEL_INV
        wrmsr_const IA32_PERFEVTSEL5, ON | EVTSEL_PC
        wrmsr_const IA32_PERFEVTSEL6, ON | 5 << EVTSEL_CMASK_SHIFT
        mov ecx, IA32_PERFEVTSEL7
        mov eax, ON | EVTSEL_ANY
        xor edx, edx
        safely wrmsr
        count_gp faults
        wrmsr_const IA32_FIXED_CTR_CTRL, FIXED0_OS
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0xff | GLOBAL_FIXED0
opened:
        .rept NOP_CYCLES * 4
        nop
        .endr
        .rept FENCES
        mfence
        .endr
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
closed:
        debug_exit 0

        .bss
        .balign 8
faults: .zero 8
        conformance_kit
