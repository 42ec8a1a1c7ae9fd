# Reserved bits of a selector: each of the 64 bits alone, accepted or #GP, and #GP changes nothing.
#
# Silicon has bits 31:0; the bits above belong to features that this CPU lacks. Bit 21, AnyThread, came
# with version 3 and does nothing where CPUID deprecates it. KVM gives it to no guest; bit 19 (pin
# control) is nobody's business.
#
#: row X-evtsel-reserved
#: args --set pmu.perf_caps=0x2000
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect bare: mem64(accepted) == 0xffffffff
#: expect emulated passthrough: mem64(accepted) == 0xffdfffff
#: expect bare: mem64(faults) == 32
#: expect emulated passthrough: mem64(faults) == 33
# After each write RDMSR gave the last value that was accepted.
#: expect all: mem64(kept) == 64

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .text
        .globl _start
_start:
        safe_setup
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        mov r13d, 1
        xor r12d, r12d                  # the last value that was accepted
        xor ebx, ebx
next:
        mov eax, r13d
        mov rdx, r13
        shr rdx, 32
        mov ecx, IA32_PERFEVTSEL0
        safely wrmsr
        count_gp faults
        test r9d, r9d
        cmovz r12, r13
        bit_if_ok accepted
        rdmsr_rax IA32_PERFEVTSEL0
        cmp rax, r12
        jne lost
        inc qword ptr [rip + kept]
lost:
        add r13, r13
        inc ebx
        cmp ebx, 64
        jb next
        debug_exit 0

        .bss
        .balign 8
accepted: .zero 8
faults: .zero 8
kept:   .zero 8
        conformance_kit
