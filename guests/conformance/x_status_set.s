# IA32_PERF_GLOBAL_STATUS_SET: bits can be set by software, without a PMI.
#
# From version 4 on. Each bit but that of Intel PT (55) is written alone: the counters' bits and the flags of
# version 4 are accepted and then found in GLOBAL_STATUS, although no counter has overflowed; bit 63 cannot
# be set. No interrupt comes, not even for a counter that has INT. Setting CTR_FRZ freezes as the real freeze
# does: a counter stands still until GLOBAL_STATUS_RESET clears the bit.
#
# KVM shows version 2: the register does not exist.
#
#: row X-status-set
#: args --set pmu.perf_caps=0x2000
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect bare: mem64(accepted) == 0x7c00000f000000ff
#: expect emulated passthrough: mem64(accepted) == 0
#: expect bare: mem64(faults) == 63 - 17
#: expect emulated passthrough: mem64(faults) == 63
#: expect bare: mem64(status) == 0x7c00000f000000ff
#: expect emulated passthrough: mem64(status) == 0
#: expect bare: mem64(itself) == 0
#: expect emulated passthrough: mem64(itself) == UNREAD
#: expect all: pmis == 0
#: expect all: mem64(irqs) == 0
# Frozen for 20 instructions, then not for 10 and the WRMSRs around them.
#: expect bare: mem64(frozen) == 0
#: expect bare: pmc0 == insns(thawed, closed)
#: expect emulated passthrough: mem64(frozen) == 0
#: expect emulated passthrough: pmc0 == 0
#: expect all: global_status == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ UNREAD, 0x5555
        .equ CTR_FRZ_HIGH, 1 << 27      # bit 59

        .text
        .globl _start
_start:
        safe_setup
        pmi_setup
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_INT | EVTSEL_EN
        sti
        mov r13d, 1
        xor ebx, ebx
next:
        cmp ebx, 55
        je skip
        mov eax, r13d
        mov rdx, r13
        shr rdx, 32
        mov ecx, IA32_PERF_GLOBAL_STATUS_SET
        safely wrmsr
        count_gp faults
        bit_if_ok accepted
skip:
        add r13, r13
        inc ebx
        cmp ebx, 64
        jb next
        rdmsr_rax IA32_PERF_GLOBAL_STATUS
        mov [rip + status], rax

        mov ecx, IA32_PERF_GLOBAL_STATUS_SET
        mov eax, UNREAD
        xor edx, edx
        safely rdmsr
        shl rdx, 32
        or rax, rdx
        mov [rip + itself], rax
        cmp rax, UNREAD
        je done

        # Only CTR_FRZ stays.
        mov rax, [rip + status]
        btr rax, 59
        wrmsr_rax IA32_PERF_GLOBAL_STATUS_RESET
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
        .rept 20
        nop
        .endr
        rdpmc_to frozen, 0
        wrmsr_const IA32_PERF_GLOBAL_STATUS_RESET, CTR_FRZ_HIGH << 32
thawed:
        .rept 10
        nop
        .endr
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
closed:
done:
        debug_exit 0

        .bss
        .balign 8
accepted: .zero 8
faults: .zero 8
status: .zero 8
itself: .zero 8
frozen: .zero 8
        conformance_kit
