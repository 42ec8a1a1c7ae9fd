# Interrupts to itself by every destination, in both modes: shorthands, physical, logical, broadcast, SELF_IPI.
#
#: row A6
#: row A7
#: upstream x86/apic.c test_self_ipi, test_physical_broadcast
#: modes bare none emulated passthrough
#: expect all: exit_code == 0
#: expect all: mem64(failures) == 0
#: expect all: mem64(checks) == 19

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ PAGE, 0xfee00000
        .equ SPIV, 0xf0
        .equ LDR, 0xd0
        .equ DFR, 0xe0
        .equ ICR, 0x300
        .equ ICR2, 0x310
        .equ EOI, 0xb0
        .equ VECTOR, 0xf1
        .equ ASSERT, 1 << 14
        .equ SELF, 1 << 18
        .equ EVERYBODY, 2 << 18
        .equ OTHERS, 3 << 18
        .equ LOGICAL, 1 << 11
        .equ LOWEST, 1 << 8

# `times` interrupts must have come.
        .macro came times
        sti
        .rept 4
        nop
        .endr
        cli
        mov rax, [rip + taken]
        mov qword ptr [rip + taken], 0
        judge \times
        .endm

        .macro page_send dest, bits, times
        mov dword ptr [rbp + ICR2], \dest << 24
        mov dword ptr [rbp + ICR], VECTOR | ASSERT | \bits
        came \times
        .endm

        .macro msr_send dest, bits, times
        mov rax, \dest << 32 | VECTOR | ASSERT | \bits
        wrmsr_at IA32_X2APIC_ICR
        came \times
        .endm

        .text
        .globl _start
_start:
        safe_setup
        set_gate VECTOR, handler
        xor r15d, r15d
        xor r12d, r12d
        mov dword ptr [rip + in_page], 1
        mov ebp, PAGE
        mov dword ptr [rbp + SPIV], 0x1ff
        case 1
        page_send 0, 0, 1
        page_send 1, 0, 0
        page_send 0xff, 0, 1
        page_send 0, SELF, 1
        page_send 0, EVERYBODY, 1
        page_send 0, OTHERS, 0
        page_send 0, LOWEST, 1
        case 2                          # logical: flat, then clusters
        mov dword ptr [rbp + LDR], 0x04000000
        page_send 0x06, LOGICAL, 1
        page_send 0xfb, LOGICAL, 0
        mov dword ptr [rbp + DFR], 0x0fffffff
        mov dword ptr [rbp + LDR], 0x24000000
        page_send 0x26, LOGICAL, 1
        page_send 0x16, LOGICAL, 0
        mov dword ptr [rip + in_page], 0
        lapic_enable_x2apic
        case 3
        msr_send 0, 0, 1
        msr_send 2, 0, 0
        msr_send 0xffffffff, 0, 1
        msr_send 0, SELF, 1
        msr_send 0, EVERYBODY, 1
        msr_send 1, LOGICAL, 1
        msr_send 2, LOGICAL, 0
        mov eax, VECTOR
        wrmsr_at IA32_X2APIC_SELF_IPI
        came 1
        debug_exit 0

handler:
        push rax
        push rcx
        push rdx
        inc qword ptr [rip + taken]
        cmp dword ptr [rip + in_page], 0
        je 1f
        mov dword ptr [rbp + EOI], 0
        jmp 2f
1:      lapic_eoi
2:      pop rdx
        pop rcx
        pop rax
        iretq

        .bss
        .balign 8
taken:  .zero 8
in_page:
        .zero 8
        conformance_kit
