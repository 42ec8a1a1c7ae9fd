# Reserved bits of IA32_PERF_GLOBAL_CTRL and IA32_FIXED_CTR_CTRL: #GP, bit by bit, and #GP changes nothing.
#
# GLOBAL_CTRL has a bit for each counter there is. FIXED_CTR_CTRL has four for each fixed counter: OS, USR,
# AnyThread and PMI; KVM gives no guest AnyThread, and three fixed counters. Where GLOBAL_CTRL is passed
# through silicon says what is reserved, and silicon has four.
#
#: row X-control-reserved
#: args --set pmu.perf_caps=0x2000
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect bare passthrough: mem64(global_accepted) == 0xf000000ff
#: expect emulated: mem64(global_accepted) == 0x7000000ff
#: expect bare: mem64(fixed_accepted) == 0xffff
#: expect emulated passthrough: mem64(fixed_accepted) == 0xbbb
#: expect bare: mem64(faults) == 52 + 48
#: expect passthrough: mem64(faults) == 52 + 55
#: expect emulated: mem64(faults) == 53 + 55
# After the faults at the end each register holds what it accepted last.
#: expect bare passthrough: mem64(global_last) == GLOBAL_FIXED3
#: expect emulated: mem64(global_last) == GLOBAL_FIXED2
#: expect bare: mem64(fixed_last) == FIXED3_PMI
#: expect emulated passthrough: mem64(fixed_last) == FIXED2_PMI

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .macro each_bit msr, accepted, last
        mov r13d, 1
        xor ebx, ebx
1:      mov eax, r13d
        mov rdx, r13
        shr rdx, 32
        mov ecx, \msr
        safely wrmsr
        count_gp faults
        bit_if_ok \accepted
        add r13, r13
        inc ebx
        cmp ebx, 64
        jb 1b
        rdmsr_rax \msr
        mov [rip + \last], rax
        .endm

        .text
        .globl _start
_start:
        safe_setup
        each_bit IA32_PERF_GLOBAL_CTRL, global_accepted, global_last
        each_bit IA32_FIXED_CTR_CTRL, fixed_accepted, fixed_last
        debug_exit 0

        .bss
        .balign 8
global_accepted: .zero 8
global_last: .zero 8
fixed_accepted: .zero 8
fixed_last: .zero 8
faults: .zero 8
        conformance_kit
