# IA32_APIC_BASE: which modes of the local APIC follow each other, and which bits are reserved.
#
#: row A2
#: row A3
#: upstream x86/apic.c test_enable_x2apic, test_apicbase
#: modes bare none emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: mem64(failures) == 0
#: expect all: mem64(checks) == 30

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"
        .include "apic.inc"

        .equ EN, APIC_BASE_ENABLE
        .equ EXTD, APIC_BASE_X2APIC
        .equ PAGE, APIC_PAGE | 1 << 8   # of the first processor
        .equ ELSEWHERE, 0xfed40000

# Write the base with these bits, from the state that is; `vector` must come of it.
        .macro to bits, vector
        mov eax, PAGE | \bits
        wrmsr_safe IA32_APIC_BASE
        judge_vector \vector
        .endm

        .text
        .globl _start
_start:
        plain_setup
        case 1                          # from xAPIC mode
        to EXTD, GENERAL_PROTECTION
        to EN, 0
        to EN | EXTD, 0
        case 2                          # from x2APIC mode
        to EXTD, GENERAL_PROTECTION
        to EN, GENERAL_PROTECTION
        to EN | EXTD, 0
        rdmsr_at IA32_APIC_BASE
        judge PAGE | EN | EXTD
        to 0, 0
        case 3                          # disabled
        to EXTD, GENERAL_PROTECTION
        to EN | EXTD, GENERAL_PROTECTION
        rdmsr_at IA32_APIC_BASE
        judge PAGE
        to EN, 0
        case 4                          # the page has moved
        mov esi, APIC_PAGE + APIC_VERSION
        mov eax, [rsi]
        mov ebx, eax
        mov eax, ELSEWHERE | EN | 1 << 8
        wrmsr_safe IA32_APIC_BASE
        judge_vector 0
        mov esi, ELSEWHERE + APIC_VERSION
        mov eax, [rsi]
        judge rbx
        to EN, 0
        case 5                          # reserved: bits 0 to 7 and 9, and what is no physical address
        xor r12d, r12d
low:    mov ecx, r12d
        mov eax, 1
        shl rax, cl
        mov rbx, rax
        mov eax, PAGE | EN
        or rax, rbx
        wrmsr_safe IA32_APIC_BASE
        judge_vector GENERAL_PROTECTION
        inc r12d
        cmp r12d, 8
        jb low
        mov eax, PAGE | EN | 1 << 9
        wrmsr_safe IA32_APIC_BASE
        judge_vector GENERAL_PROTECTION
        case 6
        mov eax, 0x80000008
        xor ecx, ecx
        cpuid
        movzx r12d, al
high:   mov ecx, r12d
        mov eax, 1
        shl rax, cl
        mov ecx, PAGE | EN
        or rax, rcx
        wrmsr_safe IA32_APIC_BASE
        judge_vector GENERAL_PROTECTION
        inc r12d
        cmp r12d, 52
        jb high
        debug_exit 0
        conformance_kit
