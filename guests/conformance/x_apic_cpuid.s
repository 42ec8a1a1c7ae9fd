# CPUID.1:EDX[9] says whether the local APIC is enabled, so it follows bit 11 of IA32_APIC_BASE.
#
#: row X-apic-cpuid
#: modes bare none emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: mem64(flags) == 0b101

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ APIC_FLAG, 9
        .equ BASE_ENABLE, 1 << 11

# Shift the flag into `flags`.
        .macro look
        mov eax, 1
        cpuid
        bt edx, APIC_FLAG
        rcl qword ptr [rip + flags], 1
        .endm

        .text
        .globl _start
_start:
        safe_setup
        look
        rdmsr_rax IA32_APIC_BASE
        mov r12, rax
        and eax, ~BASE_ENABLE
        wrmsr_rax IA32_APIC_BASE
        look
        mov rax, r12
        wrmsr_rax IA32_APIC_BASE
        look
        debug_exit 0

        .bss
        .balign 8
flags:  .zero 8
        conformance_kit
