# OS and USR: each ring's instructions in their own counter, however often the ring changes.
#
# The kernel goes to ring 3 and user code comes back with INT, again and again within one window. An
# instruction belongs to the ring in which it starts: IRETQ is the kernel's, INT the user's. OS alone counts
# the one, USR alone the other, both count all, none counts nothing; fixed counters know the same two bits.
# CPUID in ring 3 exits under KVM, and KVM, which counts it in software, asks for the ring as well.
#
#: row X-rings
#: cpu spr
#: modes bare emulated passthrough
#: expect all: exit_code == 0
#: expect all: pmc0 == ROUNDS * (insns(again, leaving) + insns(back, done)) + insns(opened, again) + insns(done, closed)
#: expect all: pmc1 == ROUNDS * insns(user, user_end)
#: expect all: pmc2 == pmc0 + pmc1
#: expect bare: exits.CPUID == 0
#: expect emulated passthrough: exits.CPUID == ROUNDS
#: expect all: pmc3 == 0
# Branches: IRETQ and the kernel's JNZ; in ring 3 the JMP and INT.
#: expect all: pmc4 == ROUNDS * 2
#: expect all: pmc5 == ROUNDS * 2
#: expect all: pmc6 == ROUNDS * 2
#: expect all: fixed0 == pmc1
# Cycles of ring 3, in which each fence takes 20, and of ring 0 are all cycles, but for fractions of one.
# Those of ring 0 are reference cycles, two for three of the core.
#: expect all: fixed1 >= ROUNDS * 20
#: expect all: 2 * fixed1 + 3 * fixed2 <= 2 * pmc7 + 6
#: expect bare emulated: 2 * fixed1 + 3 * fixed2 >= 2 * pmc7 - 6
# Where the counters are passed through, each switch reads them: a reference cycle that has begun is lost.
#: expect passthrough: 2 * fixed1 + 3 * fixed2 >= 2 * pmc7 - 6 - 3 * ROUNDS

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .equ ROUNDS, 12
        .equ BACK, 0x80

        .text
        .globl _start
_start:
        load_tss
        load_idt
        set_gate BACK, back, 3
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_EN
        wrmsr_const IA32_PERFEVTSEL1, EVT_INST_RETIRED_ANY_P | EVTSEL_USR | EVTSEL_EN
        wrmsr_const IA32_PERFEVTSEL2, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_USR | EVTSEL_EN
        wrmsr_const IA32_PERFEVTSEL3, EVT_INST_RETIRED_ANY_P | EVTSEL_EN
        wrmsr_const IA32_PERFEVTSEL4, EVT_BR_INST_RETIRED_ALL_BRANCHES | EVTSEL_OS | EVTSEL_EN
        wrmsr_const IA32_PERFEVTSEL5, EVT_BR_INST_RETIRED_ALL_BRANCHES | EVTSEL_USR | EVTSEL_EN
        wrmsr_const IA32_PERFEVTSEL6, EVT_BR_INST_RETIRED_FAR_BRANCH | EVTSEL_OS | EVTSEL_USR | EVTSEL_EN
        wrmsr_const IA32_PERFEVTSEL7, EVT_CPU_CLK_UNHALTED_THREAD_P | EVTSEL_OS | EVTSEL_USR | EVTSEL_EN
        wrmsr_const IA32_FIXED_CTR_CTRL, FIXED0_USR | FIXED1_USR | FIXED2_OS
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0xff | GLOBAL_FIXED0 | GLOBAL_FIXED1 | GLOBAL_FIXED2
opened:
        mov r12d, ROUNDS
again:
        push_user_frame user
        iretq
leaving:

user:
        nop
        xor eax, eax
        cpuid
        mfence
        jmp 1f
1:      int BACK
user_end:

back:
        lea rsp, [rsp + 40]             # what INT pushed
        dec r12d
        jnz again
done:
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
closed:
        debug_exit 0

        ring3_storage
        idt_storage
