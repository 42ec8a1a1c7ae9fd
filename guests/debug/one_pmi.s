# For the debugger: a PMI that never comes again, because its handler does not unmask LVTPC.
#
# The local APIC sets the mask of LVTPC by itself when it delivers a PMI (SDM 3B 20.2.4). A handler that loads
# the counter, clears GLOBAL_STATUS and ends the interrupt, and leaves LVTPC alone, has had its last one.
#
# Try: vpmu debug guests/debug/one_pmi.s, then `break gave_up`, `continue`, `why pmi` (docs/debug.md).
#
#: modes bare emulated passthrough mediated
#: expect all: pmis == 1
#: expect all: exit_code == 1
#: expect all: global_status == GLOBAL_PMC0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .equ PERIOD, 100
        .equ SAMPLES, 3
        .equ VECTOR, 0x40
        .equ PATIENCE, 1000             # rounds

        .text
        .globl _start
_start:
        lapic_enable_x2apic
        load_idt
        set_gate VECTOR, pmi
        wrmsr_const IA32_X2APIC_LVT_PMI, VECTOR
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_INT | EVTSEL_EN
        wrmsr_const IA32_PMC0, -PERIOD & 0xffffffff
        xor ebx, ebx                    # samples so far
        mov r12d, PATIENCE
        sti
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
wait:
        cmp ebx, SAMPLES
        jae all_there
        dec r12d
        jnz wait
gave_up:
        debug_exit 1
all_there:
        debug_exit 0

pmi:
        push rax
        push rcx
        push rdx
        inc ebx
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERF_GLOBAL_STATUS_RESET, GLOBAL_PMC0
        wrmsr_const IA32_PMC0, -PERIOD & 0xffffffff
        lapic_eoi                       # and nothing to LVTPC
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
        pop rdx
        pop rcx
        pop rax
        iretq

        idt_storage
