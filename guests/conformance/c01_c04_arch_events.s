# C1, C3, C4: every architectural event on every general-purpose counter.
#
# The counter gets its selector, a small program runs, the selector is cleared. The selector alone opens and
# closes the window (GLOBAL_CTRL is on all the while), OS and EN are its only bits. Ten rounds of six
# instructions and five more around them: 65 instructions and 10 branches, exactly, in every mode. One of the
# two selector writes is among the five: in hardware the one that closes, by KVM the one that opens.
# The other events need only be plausible; a slot is the least an instruction takes.
#
# After each count: the counter stands still (a further loop changes nothing), and it can be written.
#
#: row C1 C3 C4
#: upstream pmu_counters_test.c guest_test_arch_event
#: args --guest pmu.gp=2 --set pmu.gp=2
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: mem64(measured) == EVENTS * 2
#: expect all: mem64(still) == EVENTS * 2
#: expect all: mem64(writable) == EVENTS * 2
# For each event the least and the most that any counter gave: the same where the count is exact.
#: expect all: mem64(least + 8 * 1) == 65
#: expect all: mem64(most + 8 * 1) == 65
#: expect all: mem64(least + 8 * 5) == 10
#: expect all: mem64(most + 8 * 5) == 10
#: expect all: mem64(least + 8 * 1) == ROUNDS * insns(round, done) + insns(opened, round) + insns(done, closed)
#: expect all: mem64(least + 8 * 0) > 65 / 4
#: expect all: mem64(least + 8 * 2) > 65 / 4
# The line is flushed in every round: one request, one miss.
#: expect all: mem64(least + 8 * 3) == ROUNDS
#: expect all: mem64(most + 8 * 3) == ROUNDS
#: expect all: mem64(least + 8 * 4) == ROUNDS
#: expect all: mem64(most + 8 * 4) == ROUNDS
#: expect all: mem64(least + 8 * 7) >= 65
#: expect emulated: exits.RDPMC == EVENTS * 2 * 3
#: expect bare passthrough: exits.RDPMC == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .equ EVENTS, 8
        .equ ROUNDS, 10

        .text
        .globl _start
_start:
        # The full-width address, if there is one.
        mov r13d, IA32_PMC0
        mov eax, 1
        xor ecx, ecx
        cpuid
        bt ecx, 15                      # PDCM: IA32_PERF_CAPABILITIES exists
        jnc narrow
        rdmsr_rax IA32_PERF_CAPABILITIES
        test eax, PERF_CAP_FW_WRITES
        jz narrow
        mov r13d, IA32_A_PMC0
narrow:
        mov eax, 0xa                    # the version: EAX[7:0]; how many counters there are: EAX[15:8]
        xor ecx, ecx
        cpuid
        movzx r14d, al
        movzx eax, ah
        mov r12d, eax
        test eax, eax
        jz none
        xor r8d, r8d                    # the event
next_event:
        mov rax, -1
        lea rdi, [rip + least]
        mov [rdi + r8 * 8], rax
        xor ebx, ebx                    # the counter
next_counter:
        lea ecx, [rbx + IA32_PERFEVTSEL0]
        xor eax, eax
        xor edx, edx
        wrmsr
        cmp r14d, 2                     # version 1 has no GLOBAL_CTRL
        jb 1f
        mov eax, 1
        mov ecx, ebx
        shl eax, cl
        mov ecx, IA32_PERF_GLOBAL_CTRL
        wrmsr
1:      lea ecx, [r13 + rbx]
        xor eax, eax
        wrmsr

        lea rsi, [rip + line]
        lea rdi, [rip + events]
        mov eax, [rdi + r8 * 4]
        or eax, EVTSEL_OS | EVTSEL_EN
        lea ecx, [rbx + IA32_PERFEVTSEL0]
        mov edi, ecx
        wrmsr
opened:
        mov ecx, ROUNDS
round:
        enter 0, 0
        clflushopt [rsi]
        mfence
        mov eax, [rsi]
        leave
        loop round
done:
        mov ecx, edi
        xor eax, eax
        xor edx, edx
        wrmsr
closed:
        inc qword ptr [rip + measured]
        rdpmc_rax ebx
        mov r9, rax
        lea rdi, [rip + least]
        cmp r9, [rdi + r8 * 8]
        jae not_least
        mov [rdi + r8 * 8], r9
not_least:
        lea rdi, [rip + most]
        cmp r9, [rdi + r8 * 8]
        jbe not_most
        mov [rdi + r8 * 8], r9
not_most:
        mov ecx, ROUNDS
1:      loop 1b
        rdpmc_rax ebx
        cmp rax, r9
        jne moved
        inc qword ptr [rip + still]
moved:
        lea ecx, [r13 + rbx]
        mov eax, 0xdead
        xor edx, edx
        wrmsr
        rdpmc_rax ebx
        cmp rax, 0xdead
        jne not_written
        inc qword ptr [rip + writable]
not_written:
        inc ebx
        cmp ebx, r12d
        jb next_counter
        inc r8d
        cmp r8d, EVENTS
        jb next_event
none:
        debug_exit 0

        .data
        .balign 4
events: # in the order of CPUID.0AH:EBX
        .long EVT_CPU_CLK_UNHALTED_THREAD_P, EVT_INST_RETIRED_ANY_P, EVT_CPU_CLK_UNHALTED_REF_TSC_P
        .long EVT_LONGEST_LAT_CACHE_REFERENCE, EVT_LONGEST_LAT_CACHE_MISS
        .long EVT_BR_INST_RETIRED_ALL_BRANCHES, EVT_BR_MISP_RETIRED_ALL_BRANCHES, EVT_TOPDOWN_SLOTS_P

        .bss
        .balign 64
line: .zero 64
least: .zero 8 * EVENTS
most: .zero 8 * EVENTS
measured: .zero 8
still: .zero 8
writable: .zero 8
