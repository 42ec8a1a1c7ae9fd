# M1: a guest cannot write IA32_PERF_CAPABILITIES.
#
# The register says what the PMU can do beyond CPUID; only the VMM may set it, before the vCPU runs. The guest
# tries 66 times: with the value that it reads, with 0, and with each of the 64 bits flipped. All raise #GP.
# Silicon's own register is read-only, too.
#
#: row M1
#: upstream vmx_pmu_caps_test.c guest_wrmsr_perf_capabilities
#: args --set pmu.perf_caps=0x203f
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: mem64(faults) == 66
#: expect bare: mem64(before) == PERF_CAP_FW_WRITES + LBR_FORMAT_ARCH
#: expect emulated passthrough: mem64(before) == PERF_CAP_FW_WRITES
#: expect all: mem64(after) == mem64(before)
#: expect all: msr.IA32_PERF_CAPABILITIES.reads == 2
#: expect all: msr.IA32_PERF_CAPABILITIES.writes == 0
#: expect bare: msr.IA32_PERF_CAPABILITIES.exits == 0
#: expect emulated passthrough: msr.IA32_PERF_CAPABILITIES.exits == 66 + 2

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ LBR_FORMAT_ARCH, 0x3f

        .text
        .globl _start
_start:
        safe_setup
        rdmsr_rax IA32_PERF_CAPABILITIES
        mov [rip + before], rax
        call attempt
        xor eax, eax
        call attempt
        mov ebx, 1
flip:
        mov rax, [rip + before]
        xor rax, rbx
        call attempt
        add rbx, rbx
        jnz flip
        rdmsr_rax IA32_PERF_CAPABILITIES
        mov [rip + after], rax
        debug_exit 0

attempt:
        mov rdx, rax
        shr rdx, 32
        mov ecx, IA32_PERF_CAPABILITIES
        safely wrmsr
        count_gp faults
        ret

        .bss
        .balign 8
before: .zero 8
after: .zero 8
faults: .zero 8
        conformance_kit
