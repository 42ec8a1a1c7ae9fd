# Lesson 3: overflow and its interrupt (PMI).
#
# A counter that starts at -PERIOD wraps to 0 after PERIOD events. Its bit in IA32_PERF_GLOBAL_STATUS is
# set then, and with bit 20 (INT) of the selector the local APIC raises what its LVT entry for
# performance counters (LVTPC, here IA32_X2APIC_LVT_PMI) says. This is how profilers sample: the
# interrupted RIP is one sample, and the handler loads the counter again.
#
# The handler must do four things, or there is no second interrupt:
#   - stop the counters, so that it does not count itself;
#   - clear the bit in GLOBAL_STATUS, through GLOBAL_STATUS_RESET (also called OVF_CTRL);
#   - unmask LVTPC, which the APIC masks by itself when it delivers a PMI;
#   - end the interrupt (EOI).
#
# Where the samples land: after PERIOD counted instructions. The last instructions of the handler run
# with the counters on again and belong to the next period. On hardware, and passed through, the write
# that opens the window is not counted; under the emulated vPMU it is (lesson 1), so each period ends one
# instruction earlier there, and the samples creep backwards through the loop.
#
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: pmis == SAMPLES
#: expect all: global_status == 0
#: expect all: msr.IA32_X2APIC_LVT_PMI.writes == SAMPLES + 1
#: expect all: msr.IA32_PERF_GLOBAL_STATUS_RESET.writes == SAMPLES
#: expect bare passthrough: mem64(samples) == spin
#: expect bare passthrough: mem64(samples + 8) == spin
#: expect bare passthrough: mem64(samples + 16) == spin
#: expect emulated: mem64(samples) == spin3
#: expect emulated: mem64(samples + 8) == spin2
#: expect emulated: mem64(samples + 16) == spin1
# In hardware the emulated vPMU's counter belongs to perf, and its PMI is the host's NMI. Passed through,
# the PMI comes as the host's interrupt 0xf5, which KVM turns into the guest's.
#: expect bare: exits.EXCEPTION_NMI == 0
#: expect emulated: exits.EXCEPTION_NMI == SAMPLES
#: expect passthrough mediated: exits.EXCEPTION_NMI == 0
#: expect passthrough mediated: exits.EXTERNAL_INTERRUPT >= SAMPLES

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .equ PERIOD, 100                # a multiple of the four instructions of the loop
        .equ SAMPLES, 3
        .equ VECTOR, 0x40

        .text
        .globl _start
_start:
        lapic_enable_x2apic
        load_idt
        set_gate VECTOR, pmi
        wrmsr_const IA32_X2APIC_LVT_PMI, VECTOR

        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_INT | EVTSEL_EN
        # A write to IA32_PMC0 takes 32 bits and extends their sign: -100 becomes 2**48 - 100.
        wrmsr_const IA32_PMC0, -PERIOD & 0xffffffff
        xor ebx, ebx                    # samples so far; the handler shares it with the loop
        lea r12, [rip + samples]
        sti
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0

spin:   nop                             # these labels are what the expectations compare with
spin1:  nop
spin2:  cmp ebx, SAMPLES
spin3:  jb spin
        cli

        # The handler found the overflow bit of counter 0, and nothing else, each time.
        cmp r13d, GLOBAL_PMC0 * SAMPLES
        fail_unless_equal 1
        debug_exit 0

pmi:
        push rax
        push rcx
        push rdx
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        mov rax, [rsp + 24]             # the interrupted RIP
        mov [r12 + rbx * 8], rax
        inc ebx
        rdmsr_rax IA32_PERF_GLOBAL_STATUS
        add r13d, eax
        wrmsr_rax IA32_PERF_GLOBAL_STATUS_RESET
        wrmsr_const IA32_PMC0, -PERIOD & 0xffffffff
        wrmsr_const IA32_X2APIC_LVT_PMI, VECTOR
        lapic_eoi
        cmp ebx, SAMPLES
        jae pmi_last
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
pmi_last:
        # Four instructions of the next period: as many as the loop has.
        pop rdx
        pop rcx
        pop rax
        iretq

        .bss
        .balign 8
samples:
        .zero 8 * SAMPLES
        idt_storage
