# A disabled local APIC: its page is an open bus, CPUID.1:EDX[9] is clear, and CR8 goes on by itself.
#
#: row A4
#: upstream x86/apic.c test_apic_disable
#: modes bare none emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: mem64(failures) == 0
#: expect all: mem64(checks) == 22

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"
        .include "apic.inc"

# rax = CPUID.1:EDX[9]. Destroys rbx.
        .macro apic_flag
        mov eax, 1
        xor ecx, ecx
        cpuid
        xor eax, eax
        bt edx, 9
        setc al
        .endm

# Nobody answers at the page, and CR8 is a register of its own.
        .macro nobody
        mov edi, APIC_PAGE
        mov ecx, 4096 / 8
        mov rax, -1
        rep stosq
        mov eax, [r13 + APIC_VERSION]
        judge 0xffffffff
        mov rax, cr8
        judge 0
        mov eax, 15
        mov cr8, rax
        mov rax, cr8
        judge 15
        mov eax, [r13 + APIC_TPR]
        judge 0xffffffff
        xor eax, eax
        mov cr8, rax
        .endm

        .text
        .globl _start
_start:
        plain_setup
        case 1
        mov r13d, APIC_PAGE
        mov eax, [r13 + APIC_VERSION]
        mov [rip + version], rax
        apic_flag
        judge 1
        rdmsr_at IA32_APIC_BASE
        mov rbp, rax
        and eax, ~APIC_BASE_ENABLE
        wrmsr_safe IA32_APIC_BASE
        judge_vector 0
        rdmsr_at IA32_APIC_BASE
        bt eax, 11
        setc al
        movzx eax, al
        judge 0
        apic_flag
        judge 0
        case 2
        nobody
        case 3                          # xAPIC mode again
        mov rax, rbp
        wrmsr_at IA32_APIC_BASE
        apic_flag
        judge 1
        mov eax, [r13 + APIC_VERSION]
        judge [rip + version]
        mov eax, [r13 + APIC_TPR]
        judge 0
        mov eax, 15
        mov cr8, rax
        mov eax, [r13 + APIC_TPR]
        judge 0xf0
        xor eax, eax
        mov cr8, rax
        mov eax, [r13 + APIC_TPR]
        judge 0
        mov dword ptr [r13 + APIC_TPR], 0x50
        mov rax, cr8
        judge 5
        mov dword ptr [r13 + APIC_TPR], 0
        case 4                          # x2APIC mode
        mov rax, rbp
        or eax, APIC_BASE_X2APIC
        wrmsr_safe IA32_APIC_BASE
        judge_vector 0
        rdmsr_at IA32_APIC_BASE
        mov rcx, rbp
        or ecx, APIC_BASE_X2APIC
        judge rcx
        apic_flag
        judge 1
        nobody
        rdmsr_at IA32_X2APIC_VERSION
        judge [rip + version]
        debug_exit 0

        .bss
        .balign 8
version:
        .zero 8
        conformance_kit
