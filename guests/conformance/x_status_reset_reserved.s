# IA32_PERF_GLOBAL_STATUS_RESET clears the bits written as 1 and no other; reserved bits are #GP.
#
# Three counters overflow. The guest clears them one by one, writes 0, which clears nothing, and reads the
# register, which gives 0. Then it writes each of the 64 bits alone.
#
# KVM's version 2 has no bits for what came with version 4; it takes buffer overflow and changed conditions (62
# and 63) from every guest. Where the register is passed through, silicon's own bits hold.
#
#: row X-status-reset-reserved
#: args --set pmu.perf_caps=0x2000
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: mem64(status) == GLOBAL_PMC0 + GLOBAL_PMC1 + GLOBAL_FIXED0
#: expect all: mem64(status + 8) == GLOBAL_PMC0 + GLOBAL_FIXED0
#: expect all: mem64(status + 16) == GLOBAL_PMC0 + GLOBAL_FIXED0
#: expect all: mem64(status + 24) == GLOBAL_PMC0
#: expect all: mem64(itself) == 0
#: expect all: global_status == 0
#: expect bare passthrough: mem64(accepted) == 0xfc00000f000000ff
#: expect emulated: mem64(accepted) == 0xc0000007000000ff
#: expect bare passthrough: mem64(faults) == 64 - 18
#: expect emulated: mem64(faults) == 64 - 13

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ BEFORE, -4 & 0xffffffff

        .macro look
        rdmsr_rax IA32_PERF_GLOBAL_STATUS
        mov [r12], rax
        add r12, 8
        .endm

        .text
        .globl _start
_start:
        safe_setup
        lea r12, [rip + status]
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_EN
        wrmsr_const IA32_PERFEVTSEL1, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_EN
        wrmsr_const IA32_FIXED_CTR_CTRL, FIXED0_OS
        wrmsr_const IA32_PMC0, BEFORE
        wrmsr_const IA32_PMC1, BEFORE
        wrmsr_const IA32_FIXED_CTR0, 0xffff00000000 | BEFORE
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0 | GLOBAL_PMC1 | GLOBAL_FIXED0
        .rept 6
        nop
        .endr
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        look
        wrmsr_const IA32_PERF_GLOBAL_STATUS_RESET, GLOBAL_PMC1
        look
        wrmsr_const IA32_PERF_GLOBAL_STATUS_RESET, 0
        look
        wrmsr_const IA32_PERF_GLOBAL_STATUS_RESET, GLOBAL_FIXED0
        look
        rdmsr_rax IA32_PERF_GLOBAL_STATUS_RESET
        mov [rip + itself], rax

        mov r13d, 1
        xor ebx, ebx
next:
        mov eax, r13d
        mov rdx, r13
        shr rdx, 32
        mov ecx, IA32_PERF_GLOBAL_STATUS_RESET
        safely wrmsr
        count_gp faults
        bit_if_ok accepted
        add r13, r13
        inc ebx
        cmp ebx, 64
        jb next
        debug_exit 0

        .data
        .balign 8
itself: .quad -1

        .bss
        .balign 8
status: .zero 32
accepted: .zero 8
faults: .zero 8
        conformance_kit
