# NMIs that a processor sends to itself: inside the handler of one they wait for its IRET, and one is remembered.
#
# The first handler sends three more, so four were sent and the handler runs twice; the second run is the first
# instruction after IRET. KVM takes the messages one by one, each at an exit, and may not remember more
# (process_nmi).
#
#: row X-nmi-ipi
#: modes bare none emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: rbx == 2
#: expect all: mem64(place) == mem64(place + 8)

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ NMI, 2
        .equ ICR_NMI_TO_SELF, 1 << 18 | 4 << 8

        .text
        .globl _start
_start:
        safe_setup
        lapic_enable_x2apic
        set_gate NMI, handler
        lea r12, [rip + place]
        xor ebx, ebx
        wrmsr_const IA32_X2APIC_ICR, ICR_NMI_TO_SELF
        .rept 8
        nop
        .endr
        debug_exit 0

handler:
        push rax
        push rcx
        push rdx
        mov rax, [rsp + 24]
        mov [r12 + rbx * 8], rax
        inc ebx
        cmp ebx, 1
        jne leave_handler
        .rept 3
        wrmsr_const IA32_X2APIC_ICR, ICR_NMI_TO_SELF
        .endr
leave_handler:
        pop rdx
        pop rcx
        pop rax
        iretq

        .bss
        .balign 8
place:  .zero 32
        conformance_kit
