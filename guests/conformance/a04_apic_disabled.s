# A disabled local APIC: its page is an open bus, CPUID.1:EDX[9] is clear, and CR8 goes on by itself.
#
#: row A4
#: upstream x86/apic.c test_apic_disable
#: modes bare none emulated passthrough
#: expect all: exit_code == 0
#: expect all: mem64(failures) == 0
#: expect all: mem64(checks) == 22

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ EN, 1 << 11
        .equ EXTD, 1 << 10
        .equ PAGE, 0xfee00000
        .equ TPR, 0x80
        .equ VERSION, 0x30

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
        mov edi, PAGE
        mov ecx, 4096 / 8
        mov rax, -1
        rep stosq
        mov eax, [r13 + VERSION]
        judge 0xffffffff
        mov rax, cr8
        judge 0
        mov eax, 15
        mov cr8, rax
        mov rax, cr8
        judge 15
        mov eax, [r13 + TPR]
        judge 0xffffffff
        xor eax, eax
        mov cr8, rax
        .endm

        .text
        .globl _start
_start:
        safe_setup
        xor r15d, r15d
        xor r12d, r12d
        case 1
        mov r13d, PAGE
        mov eax, [r13 + VERSION]
        mov [rip + version], rax
        apic_flag
        judge 1
        rdmsr_at IA32_APIC_BASE
        mov rbp, rax
        and eax, ~EN
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
        mov eax, [r13 + VERSION]
        judge [rip + version]
        mov eax, [r13 + TPR]
        judge 0
        mov eax, 15
        mov cr8, rax
        mov eax, [r13 + TPR]
        judge 0xf0
        xor eax, eax
        mov cr8, rax
        mov eax, [r13 + TPR]
        judge 0
        mov dword ptr [r13 + TPR], 0x50
        mov rax, cr8
        judge 5
        mov dword ptr [r13 + TPR], 0
        case 4                          # x2APIC mode
        mov rax, rbp
        or eax, EXTD
        wrmsr_safe IA32_APIC_BASE
        judge_vector 0
        rdmsr_at IA32_APIC_BASE
        mov rcx, rbp
        or ecx, EXTD
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
