# STI lets interrupts in after the instruction that follows it: a PMI that is due waits for that one.
#
# The same six instructions run six times, with the overflow on the second, the third, and so on. The second is a
# nop with interrupts off, the third is STI, the others are nops. An overflow before STI and one by STI itself
# are both taken behind the first nop after STI; an overflow on that nop is taken at the same place, and
# from then on each is taken right behind the instruction that overflowed.
#
# The emulated vPMU counts the WRMSR that opens the window, so there each overflow is one instruction earlier.
#
#: row X-sti-shadow
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: pmis == RUNS
#: expect bare passthrough: mem64(place) == first_after + 1
#: expect bare passthrough: mem64(place + 8) == first_after + 1
#: expect bare passthrough: mem64(place + 16) == first_after + 1
#: expect bare passthrough: mem64(place + 24) == first_after + 2
#: expect bare passthrough: mem64(place + 32) == first_after + 3
#: expect emulated: mem64(place) == first_after + 1
#: expect emulated: mem64(place + 8) == first_after + 1
#: expect emulated: mem64(place + 16) == first_after + 1
#: expect emulated: mem64(place + 24) == first_after + 1
#: expect emulated: mem64(place + 32) == first_after + 2

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ RUNS, 5
        .equ FIRST, 2                   # the instruction that overflows in the first run

        .text
        .globl _start
_start:
        safe_setup
        lapic_enable_x2apic
        set_gate PMI_VECTOR, handler
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_INT | EVTSEL_EN
        lea r12, [rip + place]
        xor ebx, ebx
run:
        wrmsr_const IA32_X2APIC_LVT_PMI, PMI_VECTOR
        lea rax, [rbx + FIRST]
        neg rax
        wrmsr_rax IA32_PMC0
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
        nop
        nop
        sti
first_after:
        nop
        nop
        nop
        nop
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        cli
        inc ebx
        cmp ebx, RUNS
        jb run
        debug_exit 0

handler:
        push rax
        push rcx
        push rdx
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        mov rax, [rsp + 24]
        mov [r12 + rbx * 8], rax
        wrmsr_const IA32_PERF_GLOBAL_STATUS_RESET, GLOBAL_PMC0
        lapic_eoi
        pop rdx
        pop rcx
        pop rax
        iretq

        .bss
        .balign 8
place:  .zero 8 * RUNS
        conformance_kit
