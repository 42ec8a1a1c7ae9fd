# C6: what IA32_PERF_GLOBAL_CTRL holds after RESET.
#
# Every general-purpose counter is enabled, so that software for version 1, which knows its selectors
# only, still counts; no fixed counter is. The guest reads it before it does anything else, and shows
# that the value is no mere number: a counter that is only given a selector counts at once.
#
# KVM resets the register the same way, with the counters that the VM has. Without a vPMU it is not there.
#
#: row C6
#: upstream pmu_counters_test.c guest_test_gp_counters
#: args --guest pmu.gp=3
#: modes bare none emulated passthrough mediated
#: expect all: exit_code == 0
#: expect bare: mem64(at_reset) == 0xff
#: expect emulated passthrough: mem64(at_reset) == 0b111
#: expect none: mem64(at_reset) == UNTOUCHED
#: expect bare emulated passthrough: mem64(faults) == 0
#: expect none: mem64(faults) == 2 + 1
# One of the two selector writes is counted: in hardware the second, by KVM the first.
#: expect bare emulated passthrough: mem64(counted) == insns(opened, closed)

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ UNTOUCHED, 0x5555

        .text
        .globl _start
_start:
        safe_setup
        mov eax, UNTOUCHED
        xor edx, edx
        mov ecx, IA32_PERF_GLOBAL_CTRL
        safely rdmsr
        count_gp faults
        shl rdx, 32
        or rax, rdx
        mov [rip + at_reset], rax
        test r9d, r9d
        jnz no_pmu
        test rax, rax
        jz no_counter

        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_EN
opened:
        nop
        wrmsr_const IA32_PERFEVTSEL0, 0
closed:
        rdpmc_to counted, 0
no_counter:
        debug_exit 0

no_pmu:
        # Neither is anything else: not the register that would set it, nor a counter.
        mov ecx, IA32_PERF_GLOBAL_CTRL
        xor eax, eax
        xor edx, edx
        safely wrmsr
        count_gp faults
        xor ecx, ecx
        safely rdpmc
        count_gp faults
        debug_exit 0

        .bss
        .balign 8
at_reset: .zero 8
counted: .zero 8
faults: .zero 8
        conformance_kit
