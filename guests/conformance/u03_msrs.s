# MSRs of the processor that keep what is written: their values after RESET, a write, what is reserved, what is absent.
#
#: row U3
#: upstream msrs_test.c test_msrs
#: modes bare none emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: mem64(failures) == 0
#: expect all: mem64(checks) == 12 * 4 + 10 + 7 * 2

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ CANONICAL, 0x123456789000
        .equ NONCANONICAL, 0xaaaa000000000000
        .equ LAST_ROW, 12

        .text
        .globl _start
_start:
        plain_setup
        lea rbx, [rip + rows]
each:   case 1                          # value after RESET, a write, RESET again
        mov ecx, [rbx]
        safely rdmsr
        shl rdx, 32
        or rax, rdx
        judge [rbx + 8]
        mov ecx, [rbx]
        mov rax, [rbx + 16]
        mov rdx, rax
        shr rdx, 32
        safely wrmsr
        judge_vector 0
        mov ecx, [rbx]
        safely rdmsr
        shl rdx, 32
        or rax, rdx
        judge [rbx + 16]
        mov ecx, [rbx]
        mov rax, [rbx + 8]
        mov rdx, rax
        shr rdx, 32
        safely wrmsr
        judge_vector 0
        cmp qword ptr [rbx + 24], 0
        je nothing_reserved
        case 2
        mov ecx, [rbx]
        mov rax, [rbx + 24]
        mov rdx, rax
        shr rdx, 32
        safely wrmsr
        judge_vector GENERAL_PROTECTION
nothing_reserved:
        add rbx, 32
        inc r12d
        cmp r12d, LAST_ROW
        jb each
        case 3                          # no shadow stacks and no IBT, so no CET
        xor r12d, r12d
        lea rbx, [rip + cet]
gone:   mov ecx, [rbx]
        safely rdmsr
        judge_vector GENERAL_PROTECTION
        mov ecx, [rbx]
        xor eax, eax
        xor edx, edx
        safely wrmsr
        judge_vector GENERAL_PROTECTION
        add rbx, 4
        inc r12d
        cmp r12d, 7
        jb gone
        debug_exit 0

        .data
        .balign 8
        .macro msr_row index, reset, value, reserved=0
        .quad \index, \reset, \value, \reserved
        .endm
rows:
        msr_row IA32_PAT, 0x0007040600070406, 0x07070707, 0x0007040600070402
        msr_row IA32_TSC_AUX, 0, 0x12345678, 0xaaaa5555aaaa5555
        msr_row IA32_SYSENTER_CS, 0, 0x1234
        msr_row IA32_SYSENTER_ESP, 0, CANONICAL, NONCANONICAL
        msr_row IA32_SYSENTER_EIP, 0, CANONICAL, NONCANONICAL
        msr_row MSR_POWER_CTL, 0, 0x1234
        msr_row IA32_FS_BASE, 0, CANONICAL, NONCANONICAL
        msr_row IA32_GS_BASE, 0, CANONICAL, NONCANONICAL
        msr_row IA32_KERNEL_GS_BASE, 0, CANONICAL, NONCANONICAL
        msr_row IA32_LSTAR, 0, CANONICAL, NONCANONICAL
        msr_row IA32_CSTAR, 0, CANONICAL, NONCANONICAL
        msr_row IA32_FMASK, 0, 0xffffffff, 1 << 32
cet:    .long 0x6a0, 0x6a2, 0x6a4, 0x6a5, 0x6a6, 0x6a7, 0x6a8
        conformance_kit
