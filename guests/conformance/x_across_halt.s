# Counter state across HLT: the vCPU sleeps, its task is scheduled away, and every count goes on after it.
#
# Within one window the guest arms the timer and halts, three times. Instructions and branches are exact and
# the same in every mode, the handler's included; HLT itself is one instruction. A halted core is no
# unhalted one: the time asleep, more than half a million cycles, is in no count of cycles. A counter that is
# programmed and not enabled, whose event KVM may release meanwhile, keeps its value.
#
#: row X-across-halt
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: mem64(ticks) == SLEEPS
#: expect all: pmc0 == insns(opened, again) + SLEEPS * (insns(again, done) + insns(handler, handled)) + insns(done, closed)
#: expect all: fixed0 == pmc0
# JNZ, and the handler's IRETQ.
#: expect all: pmc1 == SLEEPS * 2
#: expect all: fixed1 < AWAKE
#: expect all: mem64(asleep) >= SLEEPS * ASLEEP
#: expect all: pmc2 == 0x123456789abc
#: expect all: pmc3 == 0x6789
#: expect emulated passthrough: exits.HLT == SLEEPS

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .equ SLEEPS, 3
        .equ ASLEEP, 200000             # cycles, each time
        .equ AWAKE, 20000               # cycles, more than all that runs takes
        .equ TICK, 0x41
        .equ ON, EVTSEL_OS | EVTSEL_EN

        .macro read_time
        rdtsc
        shl rdx, 32
        or rax, rdx
        .endm

        .text
        .globl _start
_start:
        lapic_enable_x2apic
        load_idt
        set_gate TICK, handler
        wrmsr_const IA32_X2APIC_LVT_TIMER, TICK | LVT_TIMER_TSC_DEADLINE
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_A_PMC2, 0x123456789abc
        wrmsr_const IA32_PERFEVTSEL2, EVT_INST_RETIRED_ANY_P | ON
        wrmsr_const IA32_PMC3, 0x6789
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | ON
        wrmsr_const IA32_PERFEVTSEL1, EVT_BR_INST_RETIRED_ALL_BRANCHES | ON
        wrmsr_const IA32_FIXED_CTR_CTRL, FIXED0_OS | FIXED1_OS
        read_time
        mov rbx, rax
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0 | GLOBAL_PMC1 | GLOBAL_FIXED0 | GLOBAL_FIXED1
opened:
        mov esi, SLEEPS
again:
        read_time
        add rax, ASLEEP
        wrmsr_rax IA32_TSC_DEADLINE
        sti
        hlt
        cli
        dec esi
        jnz again
done:
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
closed:
        read_time
        sub rax, rbx
        mov [rip + asleep], rax
        debug_exit 0

handler:
        push rax
        push rcx
        push rdx
        inc qword ptr [rip + ticks]
        lapic_eoi
        pop rdx
        pop rcx
        pop rax
        iretq
handled:

        .bss
        .balign 8
ticks:  .zero 8
asleep: .zero 8
        idt_storage
