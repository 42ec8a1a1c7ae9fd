# A new GLOBAL_CTRL that KVM writes for the guest is a number in a structure. With 39 in, nobody takes notice
# of what else it asks for; so 39 is left out: KVM would make a perf event, and that takes its time.
#
#: modes passthrough
#: args --without 39
#: expect all: r15 < 15000

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_EN
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        rdtsc
        mov ebx, eax
        mov ecx, IA32_PERF_GLOBAL_CTRL
        mov eax, GLOBAL_PMC0
        xor edx, edx
        FEP
        wrmsr
        rdtsc
        sub eax, ebx
        mov r15d, eax
        debug_exit 0
