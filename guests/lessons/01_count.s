# Lesson 1: count instructions.
#
# A performance counter needs three things before it moves:
#   - its selector, IA32_PERFEVTSELn, says which event, in which rings, and has its own enable bit;
#   - IA32_PERF_GLOBAL_CTRL has the counter's bit, so that one write starts and stops all of them;
#   - the event happens.
# What lies between the two writes to IA32_PERF_GLOBAL_CTRL is the window. How many instructions are in
# it? All those after the first write, and one of the two writes:
#   - on hardware the second one: it retires with the enables that it found, the first one found none;
#   - where a hypervisor intercepts the writes, the first one: it never retires (the processor left the
#     guest instead), so KVM counts it in software when it is done, and by then the counter is on.
# Either way the number is the same, and the expectations below hold in every mode.
#
# Try: vpmu run guests/lessons/01_count.s --vpmu emulated
#
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: pmc0 == insns(opened, again) + ROUNDS * insns(again, done) + insns(done, closed)
#: expect all: fixed0 == pmc0
#: expect all: pmc1 == ROUNDS
#: expect all: pmc2 == ROUNDS * 2
#: expect all: mem64(counted) == pmc0
#: expect all: global_status == 0
#: expect all: msr.IA32_PERF_GLOBAL_CTRL.writes == 3
# Without a hypervisor there is nothing to exit to. The emulated vPMU sees every PMU access; passed
# through, the counters and GLOBAL_CTRL are the guest's own, and only the selectors exit, for the filter.
#: expect bare: exits.MSR_WRITE == 0
#: expect emulated: exits.MSR_WRITE == 3 + 3 + 1
#: expect passthrough: exits.MSR_WRITE == 3 + 1
#: expect emulated: exits.RDPMC == 1
#: expect passthrough: exits.RDPMC == 0
# The vPMU that Linux merged passes GLOBAL_CTRL and RDPMC together, and only to a guest that has every
# counter of the host: some hosts have a fourth fixed counter, of which the guest knows nothing.
#: expect mediated: exits.MSR_WRITE == 3 + 1 + 3 * exits.RDPMC

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .equ ROUNDS, 100

        .text
        .globl _start
_start:
        # After RESET every general-purpose bit of GLOBAL_CTRL is set: close the window first.
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        # Counter 0 counts instructions, 1 branches, 2 loads and stores; fixed counter 0 instructions.
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_USR | EVTSEL_EN
        wrmsr_const IA32_PERFEVTSEL1, EVT_BR_INST_RETIRED_ALL_BRANCHES | EVTSEL_OS | EVTSEL_USR | EVTSEL_EN
        wrmsr_const IA32_PERFEVTSEL2, EVT_MEM_INST_RETIRED_ANY | EVTSEL_OS | EVTSEL_USR | EVTSEL_EN
        wrmsr_const IA32_FIXED_CTR_CTRL, FIXED0_OS | FIXED0_USR

        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0 | GLOBAL_PMC1 | GLOBAL_PMC2 | GLOBAL_FIXED0
opened:
        lea rsi, [rip + numbers]
        mov ebx, ROUNDS
again:
        mov eax, [rsi]                  # one load
        add eax, ebx
        mov [rsi], eax                  # one store
        dec ebx
        jnz again                       # one branch, taken or not
done:
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
closed:
        # The counter stands still now, so that reading it cannot change what is read.
        rdpmc_to counted, 0

        # numbers[0] is the sum 100 + 99 + … + 1.
        cmp dword ptr [rip + numbers], ROUNDS * (ROUNDS + 1) / 2
        fail_unless_equal 1
        debug_exit 0

        .bss
        .balign 8
counted:
        .zero 8
numbers:
        .zero 8
