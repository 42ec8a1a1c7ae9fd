# The number of a local APIC: CPUID, the page and the MSR agree, and an x2APIC's cannot be written.
#
#: row A1
#: row A5
#: upstream x86/apic.c test_lapic_existence, __test_apic_id
#: modes bare none emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: mem64(failures) == 0
#: expect all: mem64(checks) == 6

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"
        .include "apic.inc"

        .text
        .globl _start
_start:
        plain_setup
        case 1
        mov ebp, APIC_PAGE
        mov eax, [rbp + APIC_VERSION]
        movzx eax, al
        judge_range 0x10, 0x15
        mov eax, 1
        cpuid
        shr ebx, 24
        case 2
        mov eax, [rbp + APIC_ID]
        shr eax, 24
        judge rbx
        case 3
        rdmsr_at IA32_APIC_BASE
        bt eax, 8                       # the first processor
        setc al
        movzx eax, al
        judge 1
        lapic_enable_x2apic
        rdmsr_at IA32_X2APIC_APICID
        judge rbx
        mov eax, 1
        wrmsr_safe IA32_X2APIC_APICID
        judge_vector GENERAL_PROTECTION
        rdmsr_at IA32_X2APIC_APICID
        judge rbx
        debug_exit 0
        conformance_kit
