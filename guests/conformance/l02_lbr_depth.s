# How many branch records there are: as many as can be written until one raises #GP. Skylake's and
# Ice Lake's are 32, and each of them has three registers.
#
#: row L2
#: upstream x86/pmu_lbr.c main
#: cpu icx
#: modes bare emulated
#: args --guest pmu.perf_caps=0x2005
#: expect all: exit_code == 0
#: expect all: mem64(from) == 32
#: expect all: mem64(to) == 32
#: expect all: mem64(info) == 32
#: expect all: msr.MSR_LASTBRANCH_31_FROM_IP.writes == 1
#: expect all: msr.MSR_LBR_SELECT.writes == 1
#: expect all: msr.MSR_LASTBRANCH_TOS.writes == 1

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ MOST, 64
        .equ MOST_TO, 32                # the register behind is IA32_TSC_DEADLINE

# Write 0 to a family's registers in order, until one faults.
        .macro count first, into, most=MOST
        xor ebx, ebx
1:      xor eax, eax
        wrmsr_safe rbx + \first
        test r9d, r9d
        jnz 2f
        inc ebx
        cmp ebx, \most
        jb 1b
2:      mov [rip + \into], rbx
        .endm

        .text
        .globl _start
_start:
        safe_setup
        wrmsr_const MSR_LBR_SELECT, 0
        wrmsr_const MSR_LASTBRANCH_TOS, 0
        count MSR_LASTBRANCH_0_FROM_IP, from
        count MSR_LASTBRANCH_0_TO_IP, to, MOST_TO
        count MSR_LBR_INFO_0, info
        debug_exit 0

        .bss
        .balign 8
from:   .zero 8
to:     .zero 8
info:   .zero 8
        conformance_kit
