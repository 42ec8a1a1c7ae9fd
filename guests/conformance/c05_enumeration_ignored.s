# C5: hiding an architectural event from CPUID does not take it away.
#
# The VMM says in CPUID.0AH that no architectural event exists: length 0, and all bits of EBX, each of which
# means "not available". A guest should not use them then. If it does, nothing faults and everything
# counts: KVM looks at its filter, not at CPUID. Silicon does not ask either.
#
#: row C5
#: upstream pmu_counters_test.c test_arch_events
#: args --guest pmu.events_length=0 --guest pmu.events_absent=0xff
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect bare: mem32(leaf_eax) >> 24 == 8
#: expect bare: mem32(leaf_ebx) == 0
#: expect emulated passthrough: mem32(leaf_eax) >> 24 == 0
#: expect emulated passthrough: mem32(leaf_ebx) == 0xff
# Only the length differs: the rest of EAX is that of the counters.
#: expect bare: mem32(leaf_eax) & 0xffff == 5 + 0x800
#: expect emulated passthrough: mem32(leaf_eax) & 0xffff == 2 + 0x800
#: expect all: pmc0 == insns(opened, again) + ROUNDS * insns(again, done) + insns(done, closed)
#: expect all: pmc1 == ROUNDS
#: expect all: fixed0 == pmc0
#: expect all: pmc2 > ROUNDS / 4

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .equ ROUNDS, 42
        .equ ON, EVTSEL_OS | EVTSEL_EN

        .text
        .globl _start
_start:
        mov eax, 0xa
        xor ecx, ecx
        cpuid
        mov [rip + leaf_eax], eax
        mov [rip + leaf_ebx], ebx
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | ON
        wrmsr_const IA32_PERFEVTSEL1, EVT_BR_INST_RETIRED_ALL_BRANCHES | ON
        wrmsr_const IA32_PERFEVTSEL2, EVT_CPU_CLK_UNHALTED_THREAD_P | ON
        wrmsr_const IA32_FIXED_CTR_CTRL, FIXED0_OS
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0 | GLOBAL_PMC1 | GLOBAL_PMC2 | GLOBAL_FIXED0
opened:
        mov ecx, ROUNDS
again:
        loop again
done:
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
closed:
        debug_exit 0

        .bss
        .balign 8
leaf_eax: .zero 4
leaf_ebx: .zero 4
