# Freeze on PMI, version 4 and later: the overflow that interrupts stops every counter at once.
#
# With bit 12 of IA32_DEBUGCTL set, a PMI sets CTR_FRZ in GLOBAL_STATUS, and no counter counts while it is
# set; GLOBAL_CTRL stays as it is. So the counter beside the one that overflowed stands at its period
# exactly, whatever the handler does, until the handler clears CTR_FRZ in GLOBAL_STATUS_RESET.
#
# KVM does not offer the bit: writing it is #GP, and the counters run on into the handler.
#
#: row X-freeze-on-pmi
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect bare: mem64(faults) == 0
#: expect emulated passthrough: mem64(faults) == 1
#: expect all: pmis == 1
#: expect bare: mem64(beside) == PERIOD
#: expect bare passthrough: mem64(place) == thirtieth
#: expect emulated: mem64(place) == thirtieth - 1
#: expect bare: mem64(status) == GLOBAL_PMC0 + GLOBAL_CTR_FRZ
#: expect emulated passthrough: mem64(status) == GLOBAL_PMC0
#: expect all: mem64(enables) == GLOBAL_PMC0 + GLOBAL_PMC1
# RDPMC reads before it counts itself.
#: expect emulated passthrough: mem64(beside) == PERIOD + insns(handler, looking)
# Thawed: what follows counts again.
#: expect bare: pmc1 == PERIOD + insns(thawed, handled) + insns(thirtieth, closed)

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ PERIOD, 30

        .text
        .globl _start
_start:
        safe_setup
        lapic_enable_x2apic
        set_gate PMI_VECTOR, handler
        wrmsr_const IA32_X2APIC_LVT_PMI, PMI_VECTOR
        mov ecx, IA32_DEBUGCTL
        mov eax, DEBUGCTL_FREEZE_PERFMON_ON_PMI
        xor edx, edx
        safely wrmsr
        count_gp faults
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_INT | EVTSEL_EN
        wrmsr_const IA32_PERFEVTSEL1, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_EN
        wrmsr_const IA32_PMC0, -PERIOD & 0xffffffff
        sti
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0 | GLOBAL_PMC1
        .rept PERIOD
        nop
        .endr
thirtieth:
        .rept 10
        nop
        .endr
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
closed:
        cli
        debug_exit 0

handler:
        mov ecx, 1
looking:
        rdpmc
        mov [rip + beside], eax
        mov rax, [rsp]
        mov [rip + place], rax
        rdmsr_rax IA32_PERF_GLOBAL_STATUS
        mov [rip + status], rax
        rdmsr_rax IA32_PERF_GLOBAL_CTRL
        mov [rip + enables], rax
        lapic_eoi
        mov rax, [rip + status]
        wrmsr_rax IA32_PERF_GLOBAL_STATUS_RESET
thawed:
        iretq
handled:

        .bss
        .balign 8
faults: .zero 8
beside: .zero 8
place:  .zero 8
status: .zero 8
enables: .zero 8
        conformance_kit
