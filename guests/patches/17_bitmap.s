# A window that a selector opens and GLOBAL_CTRL closes. The selector exits: KVM counts that WRMSR behind its
# effect. GLOBAL_CTRL passes: silicon counts that WRMSR with the enables that it found. So both count.
#
#: modes passthrough
#: expect all: pmc0 == insns(opens, closed)

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
        mov ecx, IA32_PERFEVTSEL0
        mov eax, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_EN
        xor edx, edx
opens:
        wrmsr
        nop
        nop
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
closed:
        debug_exit 0
