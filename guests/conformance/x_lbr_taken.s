# The branch records belong to whoever has perf's event for them. Here a pinned event of the host's CPU has
# its index, so KVM's for the guest goes to ERROR. Nothing tells the guest: DEBUGCTL.LBR stays set, every
# register takes what is written and reads 0, and every access exits, where otherwise only the first does.
#
#: row X-lbr-taken
#: cpu icx
#: args --guest pmu.perf_caps=0x2005 --host-event r1b00:D
#: modes emulated
#: expect all: exit_code == 0
#: expect all: mem64(format) == 5
#: expect all: mem64(debugctl) == DEBUGCTL_LBR
#: expect all: mem64(seen) == 0
#: expect all: msr.MSR_LASTBRANCH_0_FROM_IP.exits == 2
#: expect all: msr.MSR_LASTBRANCH_31_TO_IP.exits == 1
#: expect all: exits.MSR_READ == 3 * RECORDS + 4
#: expect all: exits.MSR_WRITE == 4

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ RECORDS, 32
        .equ FORMAT, 0x3f

        .text
        .globl _start
_start:
        safe_setup
        rdmsr_at IA32_PERF_CAPABILITIES
        and eax, FORMAT
        mov [rip + format], rax
        wrmsr_const IA32_DEBUGCTL, DEBUGCTL_LBR
        wrmsr_const MSR_LASTBRANCH_0_FROM_IP, 0x1234
        wrmsr_const MSR_LBR_SELECT, 4   # leave conditional ones out
        jmp 1f
1:      call way
        rdmsr_at MSR_LBR_SELECT
        mov r12, rax
        rdmsr_at MSR_LASTBRANCH_TOS
        or r12, rax
        xor ebx, ebx
2:      rdmsr_at rbx + MSR_LASTBRANCH_0_FROM_IP
        or r12, rax
        rdmsr_at rbx + MSR_LASTBRANCH_0_TO_IP
        or r12, rax
        rdmsr_at rbx + MSR_LBR_INFO_0
        or r12, rax
        inc ebx
        cmp ebx, RECORDS
        jb 2b
        mov [rip + seen], r12
        rdmsr_at IA32_DEBUGCTL
        mov [rip + debugctl], rax
        wrmsr_const IA32_DEBUGCTL, 0
        debug_exit 0
way:    ret

        .bss
        .balign 8
format: .zero 8
debugctl:
        .zero 8
seen:   .zero 8
        conformance_kit
