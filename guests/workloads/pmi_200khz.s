# A profiler in a guest that wants a PMI every 15,000 cycles: 200,000 a second on a core that runs at 3 GHz.
#
# In mode emulated each of them costs the host several times as much as it lets the guest run: the exit of
# the NMI, perf's handler, KVM's reprogramming, the injection, and an exit for every MSR that the guest's
# handler touches. What arrives is a fraction of what was asked for.
#
#: modes emulated passthrough
#: expect all: pmis == SAMPLES

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .equ SAMPLES, 800
        .equ PERIOD, 15000
        .equ CYCLES, 0x53003c           # UNHALTED_CORE_CYCLES, USR OS INT EN
        .equ VECTOR, 0x40

        .text
        .globl _start
_start:
        load_idt
        set_gate VECTOR, pmi
        lapic_enable_x2apic
        wrmsr_const IA32_X2APIC_LVT_PMI, VECTOR
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PMC0, (-PERIOD) & 0xffffffff
        wrmsr_const IA32_PERFEVTSEL0, CYCLES
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 1
        sti
1:      cmp ebx, SAMPLES
        jb 1b
        cli
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        debug_exit 0

pmi:    push rax
        push rcx
        push rdx
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        inc ebx
        wrmsr_const IA32_PMC0, (-PERIOD) & 0xffffffff
        wrmsr_const IA32_PERF_GLOBAL_STATUS_RESET, 1
        wrmsr_const IA32_X2APIC_LVT_PMI, VECTOR
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 1
        lapic_eoi
        pop rdx
        pop rcx
        pop rax
        iretq

        idt_storage
