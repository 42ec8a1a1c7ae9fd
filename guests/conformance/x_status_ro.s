# IA32_PERF_GLOBAL_STATUS is read-only: a write is #GP and clears nothing.
#
# A counter overflows, then the guest tries to write the register with 0, with what it holds, and with
# all ones. Only GLOBAL_STATUS_RESET clears it. Where the register is passed through it is silicon that
# says no.
#
#: row X-status-ro
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: mem64(faults) == 3
#: expect all: mem64(before) == GLOBAL_PMC0
#: expect all: mem64(after) == GLOBAL_PMC0
#: expect all: global_status == 0
#: expect all: msr.IA32_PERF_GLOBAL_STATUS.writes == 0
#: expect bare passthrough: msr.IA32_PERF_GLOBAL_STATUS.exits == 0
#: expect emulated: msr.IA32_PERF_GLOBAL_STATUS.exits == 2 + 3

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .macro attempt low, high
        mov ecx, IA32_PERF_GLOBAL_STATUS
        mov eax, \low
        mov edx, \high
        safely wrmsr
        count_gp faults
        .endm

        .text
        .globl _start
_start:
        safe_setup
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_EN
        wrmsr_const IA32_PMC0, -4 & 0xffffffff
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
        .rept 6
        nop
        .endr
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        rdmsr_rax IA32_PERF_GLOBAL_STATUS
        mov [rip + before], rax
        attempt 0, 0
        attempt GLOBAL_PMC0, 0
        attempt -1, -1
        rdmsr_rax IA32_PERF_GLOBAL_STATUS
        mov [rip + after], rax
        wrmsr_const IA32_PERF_GLOBAL_STATUS_RESET, GLOBAL_PMC0
        debug_exit 0

        .bss
        .balign 8
before: .zero 8
after:  .zero 8
faults: .zero 8
        conformance_kit
