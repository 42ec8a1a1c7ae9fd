# Lesson 2: selectors, and who is counted.
#
# Bits 16 (USR) and 17 (OS) of a selector say in which rings a counter counts: USR above ring 0, OS in
# ring 0. Four counters watch the same window here. The kernel opens it, goes to ring 3 with IRETQ, the
# user code works and comes back with INT 0x80, the kernel closes the window.
#
# An instruction belongs to the ring in which it starts: IRETQ is the kernel's last one, INT the user's.
# OS and USR are no secret to the hypervisor: perf gives the counter exclude_user and exclude_kernel,
# and the hardware filters guest rings just as it filters the host's.
#
# To come back from ring 3 the processor needs a stack for ring 0. It stands in the task state segment
# (TSS), whose descriptor is in the GDT; so this kernel brings a GDT of its own.
#
#: cpu spr
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: pmc0 == insns(user, spin) + ROUNDS * insns(spin, spun) + insns(spun, user_end)
#: expect all: pmc1 == insns(opened, leaving) + insns(back, closed)
#: expect all: pmc2 == pmc0 + pmc1
#: expect all: pmc3 == ROUNDS + 1
#: expect all: pmc4 == 2
#: expect all: pmc5 == ROUNDS - 1
#: expect all: fixed0 == pmc0
# A counter with neither ring never moves, and one without EN does not either.
#: expect all: pmc6 == 0
#: expect all: pmc7 == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .equ ROUNDS, 25
        .equ BACK, 0x80                 # the vector by which user code comes back

        .text
        .globl _start
_start:
        load_tss

        load_idt
        set_gate BACK, back, 3          # ring 3 may use it

        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_USR | EVTSEL_EN
        wrmsr_const IA32_PERFEVTSEL1, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_EN
        wrmsr_const IA32_PERFEVTSEL2, EVT_INST_RETIRED_ANY_P | EVTSEL_USR | EVTSEL_OS | EVTSEL_EN
        # UMASK (bits 15:8) refines the event: all branches, far ones, conditional ones that were taken.
        wrmsr_const IA32_PERFEVTSEL3, EVT_BR_INST_RETIRED_ALL_BRANCHES | EVTSEL_USR | EVTSEL_EN
        wrmsr_const IA32_PERFEVTSEL4, EVT_BR_INST_RETIRED_FAR_BRANCH | EVTSEL_USR | EVTSEL_OS | EVTSEL_EN
        wrmsr_const IA32_PERFEVTSEL5, EVT_BR_INST_RETIRED_COND_TAKEN | EVTSEL_USR | EVTSEL_EN
        wrmsr_const IA32_PERFEVTSEL6, EVT_INST_RETIRED_ANY_P | EVTSEL_EN
        wrmsr_const IA32_PERFEVTSEL7, EVT_INST_RETIRED_ANY_P | EVTSEL_USR | EVTSEL_OS
        wrmsr_const IA32_FIXED_CTR_CTRL, FIXED0_USR

        # What IRETQ takes from the stack: SS, RSP, RFLAGS, CS, RIP.
        push_user_frame user

        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0xff | GLOBAL_FIXED0
opened:
        iretq
leaving:

user:
        mov ecx, ROUNDS
spin:
        nop
        dec ecx
        jnz spin
spun:
        int BACK
user_end:

back:
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
closed:
        # The processor pushed the user's CS: we did come from ring 3.
        mov rax, [rsp + 8]
        cmp eax, USER_CS
        fail_unless_equal 1
        debug_exit 0

        ring3_storage
        idt_storage
