# Several counters that overflow at the same instruction: one PMI, and every bit in GLOBAL_STATUS.
#
# Two general-purpose counters and fixed counter 0 count instructions from the same start; all three ask
# for an interrupt. The first request masks LVTPC, so the others have nowhere to go: one interrupt, not
# three. The handler clears two of the bits, the others stay. Counter 2 overflows with them and does not
# ask: its bit is set, too.
#
# Counter 3 reaches 0 with the WRMSR that closes the window, if that is counted (it is not where it exits),
# and counter 6 is one event behind it: a counter that ends at all ones has not overflowed.
#
#: row X-overflow-together
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: pmis == 1
#: expect all: rbx == 1
#: expect bare passthrough: mem64(status) == GLOBAL_PMC0 + GLOBAL_PMC2 + GLOBAL_PMC3 + GLOBAL_PMC5 + GLOBAL_FIXED0
#: expect emulated: mem64(status) == GLOBAL_PMC0 + GLOBAL_PMC2 + GLOBAL_PMC5 + GLOBAL_FIXED0
#: expect bare passthrough: global_status == GLOBAL_PMC2 + GLOBAL_PMC3 + GLOBAL_FIXED0
#: expect emulated: global_status == GLOBAL_PMC2 + GLOBAL_FIXED0
#: expect bare passthrough: mem64(place) == overflown
#: expect emulated: mem64(place) == overflown - 1
# The handler closes the window.
#: expect bare passthrough: pmc0 == insns(handler, stopped)
#: expect emulated: pmc0 == insns(handler, stopped) - 1
#: expect all: pmc2 == pmc0
#: expect all: pmc5 == pmc0
#: expect all: fixed0 == pmc0
#: expect bare passthrough: pmc3 == 0
#: expect emulated: pmc3 == 0xffffffffffff
#: expect bare passthrough: pmc6 == 0xffffffffffff
#: expect emulated: pmc6 == 0xfffffffffffe

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ PERIOD, 20
        .equ HANDLER, 5                 # instructions of the handler until the window is closed
        .equ ON, EVTSEL_OS | EVTSEL_EN

        .text
        .globl _start
_start:
        safe_setup
        lapic_enable_x2apic
        set_gate PMI_VECTOR, handler
        wrmsr_const IA32_X2APIC_LVT_PMI, PMI_VECTOR
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | ON | EVTSEL_INT
        wrmsr_const IA32_PERFEVTSEL2, EVT_INST_RETIRED_ANY_P | ON
        wrmsr_const IA32_PERFEVTSEL5, EVT_INST_RETIRED_ANY_P | ON | EVTSEL_INT
        wrmsr_const IA32_PERFEVTSEL3, EVT_INST_RETIRED_ANY_P | ON
        wrmsr_const IA32_PERFEVTSEL6, EVT_INST_RETIRED_ANY_P | ON
        wrmsr_const IA32_FIXED_CTR_CTRL, FIXED0_OS | FIXED0_PMI
        wrmsr_const IA32_PMC0, -PERIOD & 0xffffffff
        wrmsr_const IA32_PMC2, -PERIOD & 0xffffffff
        wrmsr_const IA32_PMC5, -PERIOD & 0xffffffff
        wrmsr_const IA32_FIXED_CTR0, (1<<48)-PERIOD
        wrmsr_const IA32_PMC3, -(PERIOD+HANDLER) & 0xffffffff
        wrmsr_const IA32_PMC6, -(PERIOD+HANDLER+1) & 0xffffffff
        xor ebx, ebx
        sti
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0x6d | GLOBAL_FIXED0
        .rept PERIOD
        nop
        .endr
overflown:
        .rept 8
        nop
        .endr
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
closed:
        cli
        debug_exit 0

handler:
        inc ebx
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
stopped:
        mov rax, [rsp]
        mov [rip + place], rax
        rdmsr_rax IA32_PERF_GLOBAL_STATUS
        mov [rip + status], rax
        wrmsr_const IA32_PERF_GLOBAL_STATUS_RESET, GLOBAL_PMC0 | GLOBAL_PMC5
        wrmsr_const IA32_X2APIC_LVT_PMI, PMI_VECTOR
        lapic_eoi
        iretq

        .bss
        .balign 8
status: .zero 8
place:  .zero 8
        conformance_kit
