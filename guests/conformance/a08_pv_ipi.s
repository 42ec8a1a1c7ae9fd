# KVM_HC_SEND_IPI: a message to the APICs of a bitmap. The answer counts those that take it.
#
#: row A8
#: upstream x86/apic.c test_pv_ipi
#: modes none emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: mem64(failures) == 0
#: expect all: mem64(checks) == 14

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"
        .include "apic.inc"

        .equ SEND_IPI, 10
        .equ VAPIC_POLL_IRQ, 1
        .equ KVM_EINVAL, 22
        .equ KVM_ENOSYS, 1000
        .equ VECTOR, 0xf1

        .macro hypercall number, low=0, high=0, first=0, icr=0
        mov eax, \number
        mov rbx, \low
        mov rcx, \high
        mov rdx, \first
        mov esi, \icr
        vmcall
        .endm

        .text
        .globl _start
_start:
        count_interrupts VECTOR
        case 1                          # the suite's own: nobody has such a number
        hypercall SEND_IPI, 0xffffffff, 0, 0xffffffff, 0
        judge 0
        case 2                          # software-disabled: it does not take it
        hypercall SEND_IPI, 1, 0, 0, VECTOR
        judge 0
        lapic_enable_x2apic
        case 3
        hypercall SEND_IPI, 1, 0, 0, VECTOR
        judge 1
        judge_taken 1
        hypercall SEND_IPI, -1, -1, 0, VECTOR
        judge 1
        judge_taken 1
        hypercall SEND_IPI, 0xfffffffe, 0, 0, VECTOR
        judge 0
        judge_taken 0
        hypercall SEND_IPI, 0, 1, 0xffffffc0, VECTOR     # the second half begins 64 later
        judge 1
        judge_taken 1
        case 4
        hypercall SEND_IPI, 1, 0, 0, VECTOR | ICR_LOGICAL
        judge -KVM_EINVAL
        hypercall SEND_IPI, 1, 0, 0, VECTOR | ICR_SELF
        judge -KVM_EINVAL
        case 5
        hypercall VAPIC_POLL_IRQ
        judge 0
        hypercall 99
        judge -KVM_ENOSYS
        debug_exit 0

        apic_kit
        conformance_kit
