# A profiler in a guest that leaves it often: where an interrupt of a counter comes late, it comes to the host.
#
# Every 5003 instructions a PMI, every 1200 to 3200, or half as many cycles, a CPUID that exits. The handler does as profilers do: what
# GLOBAL_STATUS does not tell of is not its own. Now and then the guest looks whether a PMI has not come, which
# would end its profile: then it sets its counter itself. The host samples itself meanwhile. With `--pmi-skid`
# some interrupts come when the other side has the PMU; `--pmi-vector` says who can still tell whose they are
# (docs/pmi_skid.md). Without a skid nobody is ever mistaken.
#
#: modes emulated passthrough mediated
#: args --host-event cycles/period=3001/:H
#: expect all: perf.pmis_misattributed == 0
#: expect all: perf.nmis_unclaimed == 0
#: expect all: perf.pmis_lost == 0
#: expect all: r15 == pmis
#: expect all: r14 == 0
#: expect all: pmis > ROUNDS * 2200 / PERIOD - 4

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .equ ROUNDS, 1000
        .equ PERIOD, 5003
        .equ VECTOR, 0x40
        .equ INSTRUCTIONS, 0x5300c0     # INST_RETIRED.ANY_P, USR OS INT EN

        .macro set_counter
        wrmsr_const IA32_PMC0, (-PERIOD) & 0xffffffff
        wrmsr_const IA32_PERF_GLOBAL_STATUS_RESET, 1
        .endm

        .text
        .globl _start
_start:
        load_idt
        set_gate VECTOR, pmi
        lapic_enable_x2apic
        wrmsr_const IA32_X2APIC_LVT_PMI, VECTOR
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PMC0, (-PERIOD) & 0xffffffff
        wrmsr_const IA32_PERFEVTSEL0, INSTRUCTIONS
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 1
        sti
        mov ebp, ROUNDS
1:      mov ecx, ebp
        and ecx, 63
        shl ecx, 4
        add ecx, 600
2:      dec ecx
        jnz 2b
        xor eax, eax
        cpuid
        test ebp, 3
        jnz 3f
        rdmsr_rax IA32_PMC0
        bt rax, 47                      # clear once it has wrapped
        jc 3f
        inc r14d
        set_counter
3:      dec ebp
        jnz 1b
        cli
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        debug_exit 0

pmi:    push rax
        push rcx
        push rdx
        rdmsr_rax IA32_PERF_GLOBAL_STATUS
        test al, 1
        jz 1f
        inc r15d
        set_counter
1:      wrmsr_const IA32_X2APIC_LVT_PMI, VECTOR
        lapic_eoi
        pop rdx
        pop rcx
        pop rax
        iretq

        idt_storage
