# Lesson 4: the host forbids events.
#
# A cloud host does not let a guest count just anything: some events tell about its neighbours. It hands
# KVM a filter (KVM_SET_PMU_EVENT_FILTER): a list of events to allow or to deny, by event select and
# unit mask, and a bitmap for the fixed counters. Look at 04_filter.toml beside this file.
#
# The guest is not told. Its write to a selector is accepted and reads back as written, but the counter
# stays where it is. That is why even the passed-through vPMU lets selector writes exit: KVM must see
# them, and the value that it puts into hardware (eventsel_hw) need not be the guest's.
#
# Without a hypervisor there is no filter, and everything counts.
#
#: args --filter 04_filter.toml
#: cpu spr
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
# Instructions: denied to pmc0 and, by the bitmap, to fixed0.
#: expect bare: pmc0 == insns(opened, again) + ROUNDS * insns(again, done) + insns(done, closed)
#: expect emulated passthrough mediated: pmc0 == 0
#: expect bare: fixed0 == pmc0
#: expect emulated passthrough mediated: fixed0 == 0
# NOPs are instructions with a unit mask: denied as well.
#: expect bare: pmc1 == ROUNDS
#: expect emulated passthrough mediated: pmc1 == 0
# All branches: allowed by the exclusion. Taken ones: denied.
#: expect all: pmc2 == ROUNDS
#: expect bare: pmc4 == ROUNDS - 1
#: expect emulated passthrough mediated: pmc4 == 0
# Stores are not on the list: allowed.
#: expect all: pmc3 == ROUNDS
#: expect all: mem64(selector) == mem64(written)
#: expect emulated passthrough mediated: msr.IA32_PERFEVTSEL0.exits == 2

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .equ ROUNDS, 50
        .equ ON, EVTSEL_OS | EVTSEL_USR | EVTSEL_EN

        .text
        .globl _start
_start:
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | ON
        wrmsr_const IA32_PERFEVTSEL1, EVT_INST_RETIRED_NOP | ON
        wrmsr_const IA32_PERFEVTSEL2, EVT_BR_INST_RETIRED_ALL_BRANCHES | ON
        wrmsr_const IA32_PERFEVTSEL3, EVT_MEM_INST_RETIRED_ALL_STORES | ON  # counters 0 to 3 only
        wrmsr_const IA32_PERFEVTSEL4, EVT_BR_INST_RETIRED_COND_TAKEN | ON
        wrmsr_const IA32_FIXED_CTR_CTRL, FIXED0_OS | FIXED0_USR

        # The selector reads back as it was written, filtered or not.
        rdmsr_rax IA32_PERFEVTSEL0
        mov [rip + selector], rax
        cmp rax, [rip + written]
        fail_unless_equal 1

        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0x1f | GLOBAL_FIXED0
opened:
        lea rsi, [rip + scratch]
        mov ebx, ROUNDS
again:
        nop
        mov [rsi], ebx
        dec ebx
        jnz again
done:
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
closed:
        debug_exit 0

        .data
        .balign 8
written:
        .quad EVT_INST_RETIRED_ANY_P | ON

        .bss
        .balign 8
selector:
        .zero 8
scratch:
        .zero 8
