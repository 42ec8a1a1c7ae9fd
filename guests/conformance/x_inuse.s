# IA32_PERF_GLOBAL_INUSE: which counters software has programmed, read off their controls.
#
# From version 4 on, read-only. A counter is in use while its selector names an event, EN or not; a unit mask
# alone names none. A fixed counter is in use while one of its rings is set. Bit 63 says that some counter
# asks for a PMI.
#
# KVM shows version 2: the register does not exist.
#
#: row X-inuse
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect bare: mem64(seen) == 0
#: expect bare: mem64(seen + 8) == GLOBAL_PMC1
#: expect bare: mem64(seen + 16) == GLOBAL_PMC1
#: expect bare: mem64(seen + 24) == GLOBAL_PMC1 + GLOBAL_FIXED2
#: expect bare: mem64(seen + 32) == GLOBAL_PMC1 + GLOBAL_FIXED2 + PMI
#: expect bare: mem64(seen + 40) == GLOBAL_PMC1 + GLOBAL_PMC7 + GLOBAL_FIXED2 + PMI
#: expect bare: mem64(seen + 48) == GLOBAL_FIXED2 + PMI
#: expect emulated passthrough: mem64(seen) == UNREAD
#: expect emulated passthrough: mem64(seen + 48) == UNREAD
# Each of the seven reads, and the write at the end.
#: expect bare: mem64(faults) == 1
#: expect emulated passthrough: mem64(faults) == 7 + 1
#: expect emulated passthrough: msr.IA32_PERF_GLOBAL_INUSE.exits == 7 + 1

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ PMI, 1 << 63
        .equ UNREAD, 0x5555

        .macro look
        mov ecx, IA32_PERF_GLOBAL_INUSE
        mov eax, UNREAD
        xor edx, edx
        safely rdmsr
        count_gp faults
        shl rdx, 32
        or rax, rdx
        mov [r12], rax
        add r12, 8
        .endm

        .text
        .globl _start
_start:
        safe_setup
        lea r12, [rip + seen]
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        look
        wrmsr_const IA32_PERFEVTSEL1, EVT_INST_RETIRED_ANY_P
        look
        wrmsr_const IA32_PERFEVTSEL3, 0x0300 | EVTSEL_OS | EVTSEL_USR | EVTSEL_EN
        look
        wrmsr_const IA32_FIXED_CTR_CTRL, FIXED2_USR
        look
        wrmsr_const IA32_FIXED_CTR_CTRL, FIXED2_USR | FIXED2_PMI
        look
        wrmsr_const IA32_PERFEVTSEL7, EVT_BR_INST_RETIRED_ALL_BRANCHES | EVTSEL_INT
        look
        wrmsr_const IA32_PERFEVTSEL1, 0
        wrmsr_const IA32_PERFEVTSEL7, 0
        look
        mov ecx, IA32_PERF_GLOBAL_INUSE
        xor eax, eax
        xor edx, edx
        safely wrmsr
        count_gp faults
        debug_exit 0

        .bss
        .balign 8
seen:   .zero 8 * 7
faults: .zero 8
        conformance_kit
