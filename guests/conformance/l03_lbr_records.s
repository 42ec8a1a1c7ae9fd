# With DEBUGCTL.LBR every branch is recorded: after a few hundred none of the 32 records is 0. Here also
# which ones they are. The last thing recorded is the way out of a function; before it came its loop, whose
# branch is in all other records. They lie in a ring, the newest under TOS. A guest of KVM has them where its
# LBR_FMT is the host's and KVM's own perf event holds the registers for it.
#
#: row L3
#: upstream x86/pmu_lbr.c lbr_test
#: cpu icx
#: modes bare emulated
#: args --guest pmu.perf_caps=0x2005
#: expect all: exit_code == 0
#: expect all: mem64(zeros) == 0
#: expect all: mem64(loops) == RECORDS - 1
#: expect all: mem64(last_from) == way_out
#: expect all: mem64(last_to) == after
# The newest is a return, which this model always predicts.
#: expect all: mem64(last_info) >> 63 == 0
#: expect all: mem64(tos) == (1 + (TIMES - 1) + 1) % RECORDS

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ TIMES, 300
        .equ RECORDS, 32

        .text
        .globl _start
_start:
        safe_setup
        wrmsr_const MSR_LBR_SELECT, 0
        wrmsr_const MSR_LASTBRANCH_TOS, 0
        wrmsr_const IA32_DEBUGCTL, DEBUGCTL_LBR
        call lbr_test
after:
        wrmsr_const IA32_DEBUGCTL, 0
        rdmsr_at MSR_LASTBRANCH_TOS
        mov [rip + tos], rax
        mov r12, rax
        rdmsr_at r12 + MSR_LASTBRANCH_0_FROM_IP
        mov [rip + last_from], rax
        rdmsr_at r12 + MSR_LASTBRANCH_0_TO_IP
        mov [rip + last_to], rax
        rdmsr_at r12 + MSR_LBR_INFO_0
        mov [rip + last_info], rax

        xor ebx, ebx
record:
        rdmsr_at rbx + MSR_LASTBRANCH_0_FROM_IP
        mov rbp, rax
        rdmsr_at rbx + MSR_LASTBRANCH_0_TO_IP
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
        inc qword ptr [rip + loops]
        jmp next
zero:   inc qword ptr [rip + zeros]
next:   inc ebx
        cmp ebx, RECORDS
        jb record
        debug_exit 0

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
tos:    .zero 8
last_from:
        .zero 8
last_to:
        .zero 8
last_info:
        .zero 8
loops:  .zero 8
zeros:  .zero 8
        conformance_kit
