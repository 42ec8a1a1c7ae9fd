# Counter state across VM exits: nothing is lost, doubled or mixed up, whatever leaves the guest.
#
# Ten rounds of instructions that exit under KVM (CPUID, OUT, WBINVD, RDMSR of a selector) run inside a
# window. Instructions and branches are exact and the same in every mode: what exits does not retire, and
# KVM counts it in software. Values in counters that stand still, selectors, and bits of GLOBAL_STATUS
# are afterwards what they were, although with the passed-through vPMU every exit takes them out of the
# hardware and puts them back.
#
#: row X-across-exits
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: pmc0 == insns(opened, again) + ROUNDS * insns(again, done) + insns(done, closed)
#: expect all: fixed0 == pmc0
#: expect all: pmc1 == ROUNDS
#: expect bare: exits.CPUID == 0
#: expect emulated passthrough: exits.CPUID == ROUNDS
#: expect emulated passthrough: exits.WBINVD == ROUNDS
#: expect emulated passthrough: exits.IO_INSTRUCTION == ROUNDS + 1
#: expect emulated passthrough: msr.IA32_PERFEVTSEL0.exits == ROUNDS + 1
#: expect all: msr.IA32_PERFEVTSEL0.reads == ROUNDS
# Each read gave the selector: the sum of ten.
#: expect all: mem64(selectors) == ROUNDS * (EVTSEL_OS + EVTSEL_EN + 0xc0)
#: expect all: pmc2 == VALUE + 2
#: expect all: pmc3 == VALUE + 3
#: expect all: pmc6 == VALUE + 6
#: expect all: pmc7 == VALUE + 7
#: expect all: fixed1 == VALUE + 9
#: expect all: fixed2 == VALUE + 10
#: expect all: global_status == GLOBAL_PMC4
#: expect all: pmc4 == 2

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .equ ROUNDS, 10
        .equ VALUE, 0x123456789a00
        .equ ON, EVTSEL_OS | EVTSEL_EN
        .equ QUIET, 0x80                # a port where nothing is

        .text
        .globl _start
_start:
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        # An overflow that nobody clears.
        wrmsr_const IA32_PERFEVTSEL4, EVT_INST_RETIRED_ANY_P | ON
        wrmsr_const IA32_A_PMC4, (1<<48)-3
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC4
        nop
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        # Values that stand still, with live selectors behind some of them.
        wrmsr_const IA32_A_PMC2, VALUE+2
        wrmsr_const IA32_A_PMC3, VALUE+3
        wrmsr_const IA32_A_PMC6, VALUE+6
        wrmsr_const IA32_A_PMC7, VALUE+7
        wrmsr_const IA32_FIXED_CTR1, VALUE+9
        wrmsr_const IA32_FIXED_CTR2, VALUE+10
        wrmsr_const IA32_PERFEVTSEL2, EVT_INST_RETIRED_ANY_P | ON
        wrmsr_const IA32_PERFEVTSEL6, EVT_CPU_CLK_UNHALTED_THREAD_P | ON
        wrmsr_const IA32_PERFEVTSEL7, EVT_INST_RETIRED_ANY_P | EVTSEL_OS

        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | ON
        wrmsr_const IA32_PERFEVTSEL1, EVT_BR_INST_RETIRED_ALL_BRANCHES | ON
        wrmsr_const IA32_FIXED_CTR_CTRL, FIXED0_OS | FIXED2_OS
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0 | GLOBAL_PMC1 | GLOBAL_PMC7 | GLOBAL_FIXED0
opened:
        mov esi, ROUNDS
again:
        mov eax, 1
        cpuid
        out QUIET, al
        wbinvd
        rdmsr_rax IA32_PERFEVTSEL0
        add [rip + selectors], rax
        dec esi
        jnz again
done:
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
closed:
        debug_exit 0

        .bss
        .balign 8
selectors:
        .zero 8
