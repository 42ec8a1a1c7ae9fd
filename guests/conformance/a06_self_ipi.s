# Interrupts to itself by every destination, in both modes: shorthands, physical, logical, broadcast, SELF_IPI.
#
#: row A6
#: row A7
#: upstream x86/apic.c test_self_ipi, test_physical_broadcast
#: modes bare none emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: mem64(failures) == 0
#: expect all: mem64(checks) == 19

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"
        .include "apic.inc"

        .equ VECTOR, 0xf1

        .macro page_send dest, bits, times
        mov dword ptr [rbp + APIC_ICR2], \dest << 24
        mov dword ptr [rbp + APIC_ICR], VECTOR | ICR_ASSERT | \bits
        judge_taken \times
        .endm

        .macro msr_send dest, bits, times
        mov rax, \dest << 32 | VECTOR | ICR_ASSERT | \bits
        wrmsr_at IA32_X2APIC_ICR
        judge_taken \times
        .endm

        .text
        .globl _start
_start:
        count_interrupts VECTOR
        mov ebp, APIC_PAGE
        mov dword ptr [rbp + APIC_SPIV], 0x1ff
        case 1
        page_send 0, 0, 1
        page_send 1, 0, 0
        page_send 0xff, 0, 1
        page_send 0, ICR_SELF, 1
        page_send 0, ICR_EVERYBODY, 1
        page_send 0, ICR_OTHERS, 0
        page_send 0, ICR_LOWEST, 1
        case 2                          # logical: flat, then clusters
        mov dword ptr [rbp + APIC_LDR], 0x04000000
        page_send 0x06, ICR_LOGICAL, 1
        page_send 0xfb, ICR_LOGICAL, 0
        mov dword ptr [rbp + APIC_DFR], 0x0fffffff
        mov dword ptr [rbp + APIC_LDR], 0x24000000
        page_send 0x26, ICR_LOGICAL, 1
        page_send 0x16, ICR_LOGICAL, 0
        lapic_enable_x2apic
        case 3
        msr_send 0, 0, 1
        msr_send 2, 0, 0
        msr_send 0xffffffff, 0, 1
        msr_send 0, ICR_SELF, 1
        msr_send 0, ICR_EVERYBODY, 1
        msr_send 1, ICR_LOGICAL, 1
        msr_send 2, ICR_LOGICAL, 0
        mov eax, VECTOR
        wrmsr_at IA32_X2APIC_SELF_IPI
        judge_taken 1
        debug_exit 0

        apic_kit
        conformance_kit
