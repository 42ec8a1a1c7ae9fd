# A PMI as NMI: what overflows inside the handler comes once, after its IRET, and never nests.
#
# The first NMI's handler makes the counter overflow twice more, and unmasks LVTPC before each time, so both
# raise NMIs. NMIs are blocked until IRET, and the processor remembers one of them: the handler runs
# a second time, right after IRET and before any other instruction, and there is no third.
#
#: row X-nmi-second
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: rbx == 2
#: expect all: mem64(nested) == 0
#: expect all: mem64(place) == mem64(place + 8)
#: expect bare passthrough: mem64(place) == overflown
#: expect emulated: mem64(place) == overflown - 1
# The bit that was set when the handler looked: by the first overflow, by the two within.
#: expect all: mem64(status) == GLOBAL_PMC0
#: expect all: mem64(status + 8) == 0
#: expect all: mem64(within) == 2 * GLOBAL_PMC0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ PERIOD, 20
        .equ NMI, 2

        .macro overflow
        wrmsr_const IA32_PMC0, -4 & 0xffffffff
        wrmsr_const IA32_X2APIC_LVT_PMI, LVT_NMI
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
        .rept 6
        nop
        .endr
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        rdmsr_rax IA32_PERF_GLOBAL_STATUS
        add [rip + within], rax
        wrmsr_const IA32_PERF_GLOBAL_STATUS_RESET, GLOBAL_PMC0
        .endm

        .text
        .globl _start
_start:
        safe_setup
        lapic_enable_x2apic
        set_gate NMI, handler
        wrmsr_const IA32_X2APIC_LVT_PMI, LVT_NMI
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_INT | EVTSEL_EN
        wrmsr_const IA32_PMC0, -PERIOD & 0xffffffff
        lea r12, [rip + place]
        xor ebx, ebx
        xor r13d, r13d                  # handlers that are running
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
        .rept PERIOD
        nop
        .endr
overflown:
        .rept 8
        nop
        .endr
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        debug_exit 0

handler:
        push rax
        push rcx
        push rdx
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        add [rip + nested], r13
        inc r13d
        mov rax, [rsp + 24]
        mov [r12 + rbx * 8], rax
        rdmsr_rax IA32_PERF_GLOBAL_STATUS
        mov [r12 + rbx * 8 + (status - place)], rax
        wrmsr_const IA32_PERF_GLOBAL_STATUS_RESET, GLOBAL_PMC0
        inc ebx
        cmp ebx, 1
        jne leave_handler
        overflow
        overflow
leave_handler:
        dec r13d
        pop rdx
        pop rcx
        pop rax
        iretq

        .bss
        .balign 8
place:  .zero 24
status: .zero 24
nested: .zero 8
within: .zero 8
        conformance_kit
