# The architecture's branch records on Sapphire Rapids: entry 0 is the newest, and IA32_LBR_x_INFO says what
# kind of branch it was. A function with a loop is called; then entry 0 is its return, the others its loop.
# Filters leave kinds out: with COND alone the return is not there.
#
#: row L3
#: upstream x86/pmu_lbr.c lbr_test
#: cpu spr
#: modes bare
#: expect all: exit_code == 0
#: expect all: mem64(all_zeros) == 0
#: expect all: mem64(all_loops) == RECORDS - 1
#: expect all: mem64(all_from) == way_out
#: expect all: mem64(all_to) == after_all
#: expect all: mem64(all_info) >> 56 & 0xf == NEAR_RET
#: expect all: mem64(cond_zeros) == 0
#: expect all: mem64(cond_loops) == RECORDS
#: expect all: mem64(cond_from) == branch
#: expect all: mem64(cond_to) == again
#: expect all: mem64(cond_info) >> 56 & 0xf == COND

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ TIMES, 300
        .equ RECORDS, 32
        .equ COND, 0                    # BR_TYPE
        .equ NEAR_RET, 5
        .equ CALLS, LBR_CTL_NEAR_REL_CALL | LBR_CTL_NEAR_IND_CALL | LBR_CTL_NEAR_RET
        .equ JUMPS, LBR_CTL_NEAR_REL_JMP | LBR_CTL_NEAR_IND_JMP
        .equ EVERYTHING, LBR_CTL_COND | JUMPS | CALLS | LBR_CTL_OTHER_BRANCH
        .equ ON, LBR_CTL_ENABLE | LBR_CTL_OS | LBR_CTL_USR

# Call the function with these kinds recorded; keep the newest record and count the others.
        .macro recorded kinds, name
        wrmsr_const IA32_LBR_DEPTH, RECORDS
        wrmsr_const IA32_LBR_CTL, ON | \kinds
        call lbr_test
after_\name:
        wrmsr_const IA32_LBR_CTL, 0
        rdmsr_at IA32_LBR_0_FROM_IP
        mov [rip + \name\()_from], rax
        rdmsr_at IA32_LBR_0_TO_IP
        mov [rip + \name\()_to], rax
        rdmsr_at IA32_LBR_0_INFO
        mov [rip + \name\()_info], rax
        call count
        mov [rip + \name\()_loops], r13
        mov [rip + \name\()_zeros], r14
        .endm

        .macro results name
\name\()_from:
        .zero 8
\name\()_to:
        .zero 8
\name\()_info:
        .zero 8
\name\()_loops:
        .zero 8
\name\()_zeros:
        .zero 8
        .endm

        .text
        .globl _start
_start:
        safe_setup
        recorded EVERYTHING, all
        recorded LBR_CTL_COND, cond
        debug_exit 0

# r13 = records of the loop's branch, r14 = records with a 0.
count:
        xor ebx, ebx
        xor r13d, r13d
        xor r14d, r14d
record:
        rdmsr_at rbx + IA32_LBR_0_FROM_IP
        mov rbp, rax
        rdmsr_at rbx + IA32_LBR_0_TO_IP
        test rbp, rbp
        jz zero
        test rax, rax
        jz zero
        lea rcx, [rip + branch]
        cmp rbp, rcx
        jne next
        lea rcx, [rip + again]
        cmp rax, rcx
        jne next
        inc r13
        jmp next
zero:   inc r14
next:   inc ebx
        cmp ebx, RECORDS
        jb record
        ret

lbr_test:
        mov ecx, TIMES
        mov eax, 1
again:  imul eax, eax, 3
        add eax, ecx
        dec ecx
branch: jnz again
way_out:
        ret

        .bss
        .balign 8
        results all
        results cond
        conformance_kit
