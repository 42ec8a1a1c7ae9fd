# Lesson 7: contention: a counter that stops, and nobody says so.
#
# The emulated vPMU makes a perf event of the host out of each counter of the guest. Perf has other
# clients. Here a neighbour on the host (guests/host/noisy_neighbour.s) pins events to the whole CPU, as
# many as there are counters; they come before those of any task, and KVM's belong to the VMM's task. When
# the VMM is scheduled in again, its events find no counter, and pinned ones that find none go to ERROR.
#
# What the guest sees of it: nothing. GLOBAL_CTRL still has the bit, GLOBAL_STATUS is 0, no access faults;
# the counter just stands still. When the neighbour has gone, it still stands still: an event in ERROR is
# not scheduled again until its owner enables it. KVM does that when the guest next toggles GLOBAL_CTRL
# (pmc_resume_counter(), perf_event_enable()); a toggle while the neighbour is there does not help.
#
# The counter counts branches, not instructions: KVM counts the instructions that it emulates in software,
# asks for each such counter to be reprogrammed, and so even an RDPMC would be a toggle for it.
#
# Passed through, the guest owns the PMU while it runs: the neighbour's events, which do not exclude guests,
# go to ERROR instead.
#
# Try: vpmu run guests/lessons/07_contention.s --vpmu emulated --host guests/host/noisy_neighbour.s
#
#: modes bare emulated passthrough mediated
#: args --host ../host/noisy_neighbour.s
#: expect all: exit_code == 0
#: expect all: mem64(counts) == ROUNDS
#: expect emulated: mem64(stands) == 0
#: expect bare passthrough: mem64(stands) == ROUNDS
# No error and no overflow, and the enables are as the guest left them.
#: expect all: mem64(control) == GLOBAL_PMC0
#: expect all: mem64(status) == 0
# A toggle while the neighbour is there; then it has gone; then a toggle.
#: expect emulated: mem64(toggled) == 0
#: expect emulated: mem64(waited) == 0
#: expect emulated: mem64(revived) == ROUNDS
#: expect bare passthrough: mem64(toggled) == ROUNDS
#: expect bare passthrough: mem64(waited) == ROUNDS
#: expect bare passthrough: mem64(revived) == ROUNDS

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .equ ROUNDS, 500
        .equ PATIENCE, 1500000          # cycles until the neighbour must have come
        .equ LONG, 1500000              # and from then until it has surely gone

# The time. Destroys rdx.
        .macro time_rax
        rdtsc
        shl rdx, 32
        or rax, rdx
        .endm

# Wait until the time in r15. Destroys rax, rdx.
        .macro wait_for_r15
9:      pause
        time_rax
        cmp rax, r15
        jb 9b
        .endm

        .text
        .globl _start
_start:
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_BR_INST_RETIRED_ALL_BRANCHES | EVTSEL_OS | EVTSEL_EN
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
        call measure
        mov [rip + counts], r12

        # Until the counter stands still, or for as long as there is hope.
        time_rax
        lea r15, [rax + PATIENCE]
again:  call measure
        test r12, r12
        jz stopped
        time_rax
        cmp rax, r15
        jb again
stopped:
        mov [rip + stands], r12
        time_rax
        lea r15, [rax + LONG]
        rdmsr_rax IA32_PERF_GLOBAL_CTRL
        mov [rip + control], rax
        rdmsr_rax IA32_PERF_GLOBAL_STATUS
        mov [rip + status], rax

        call toggle
        call measure
        mov [rip + toggled], r12

        wait_for_r15
        call measure
        mov [rip + waited], r12

        call toggle
        call measure
        mov [rip + revived], r12
        debug_exit 0

# ROUNDS branches between two readings: how far the counter went in r12.
measure:
        rdpmc_rax 0
        mov r12, rax
        mov ebx, ROUNDS
1:      pause
        dec ebx
        jnz 1b
        rdpmc_rax 0
        sub rax, r12
        mov r12, rax
        ret

toggle:
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
        ret

        .bss
        .balign 8
counts: .zero 8
stands: .zero 8
control: .zero 8
status: .zero 8
toggled: .zero 8
waited: .zero 8
revived: .zero 8
