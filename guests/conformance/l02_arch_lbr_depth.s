# The architecture's branch records are as many as IA32_LBR_DEPTH says: registers beyond it raise #GP.
# CPUID leaf 1CH says which depths there are, bit n of EAX for 8 * (n + 1); every other value raises #GP.
#
#: row L2
#: upstream x86/pmu_lbr.c main
#: cpu spr
#: modes bare
#: expect all: exit_code == 0
#: expect all: mem64(checks) == 64 + 3 * 3
#: expect all: mem64(first_bad) == 0
#: expect all: mem64(failures) == 0
#: expect all: mem64(depths) == 0xb

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ CPUID_LBR, 0x1c
        .equ MOST, 64

        .text
        .globl _start
_start:
        safe_setup
        mov eax, CPUID_LBR
        xor ecx, ecx
        cpuid
        movzx eax, al
        mov [rip + depths], rax

        # Case 1: a depth exists if CPUID says so.
        xor r12d, r12d
depth:
        mov eax, r12d
        wrmsr_safe IA32_LBR_DEPTH
        mov ebx, GENERAL_PROTECTION
        mov eax, r12d
        dec eax
        and eax, 7
        cmp eax, 7                      # a multiple of 8
        jne 1f
        mov eax, r12d
        shr eax, 3
        dec eax                         # for 0: no such bit
        cmp eax, 7
        ja 1f
        bt [rip + depths], rax
        jnc 1f
        xor ebx, ebx
1:      case 1
        mov rax, r9
        judge rbx
        test ebx, ebx
        jnz 2f
        call registers
2:      inc r12d
        cmp r12d, MOST
        jb depth
        debug_exit 0

# Cases 2 to 4: with this depth there are r12 registers of each kind.
registers:
        mov r13d, IA32_LBR_0_FROM_IP
        mov ebp, 2
        call family
        mov r13d, IA32_LBR_0_TO_IP
        mov ebp, 3
        call family
        mov r13d, IA32_LBR_0_INFO
        mov ebp, 4
family:
        xor r15d, r15d
3:      rdmsr_safe r13 + r15
        test r9d, r9d
        jnz 4f
        inc r15d
        cmp r15d, MOST
        jb 3b
4:      mov rax, r15
        xor r15d, r15d
        case ebp
        judge r12
        ret

        .bss
        .balign 8
depths: .zero 8
        conformance_kit
