# E7: a VM whose PMU is disabled (KVM_PMU_CAP_DISABLE, enable_pmu=0) has none.
#
# The guest does what a driver does before it trusts a PMU: it flips bits of GLOBAL_CTRL, of a selector
# and of a counter, and looks whether they read back. Without a vPMU the first raises #GP; the second and
# the third do not, for KVM hides the absence of 0xC1 and 0x186, but what was written is lost.
#
#: row E7
#: upstream pmu_event_filter_test.c test_pmu_config_disable
#: modes bare none emulated passthrough mediated
#: expect all: exit_code == 0
# Bit 0: the write did not fault; bit 1: nor the read; bit 2: it gave what was written.
#: expect bare emulated passthrough: mem64(global_ctrl) == 0b111
#: expect none: mem64(global_ctrl) == 0
#: expect bare emulated passthrough: mem64(selector) == 0b111
#: expect none: mem64(selector) == 0b011
#: expect bare emulated passthrough: mem64(counter) == 0b111
#: expect none: mem64(counter) == 0b011
# CPUID says so, too: version 0, and no IA32_PERF_CAPABILITIES.
#: expect bare: mem32(version) == 5
#: expect emulated passthrough: mem32(version) == 2
#: expect none: mem32(version) == 0
#: expect bare emulated passthrough: mem32(pdcm) == 1
#: expect none: mem32(pdcm) == 0
# Nor can that register be read then.
#: expect bare emulated passthrough: mem64(capabilities) == 1
#: expect none: mem64(capabilities) == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        # Flip `bits` of an MSR and leave in `where` how that went.
        .macro flip msr, bits, where
        mov ecx, \msr
        xor eax, eax
        xor edx, edx
        safely rdmsr
        xor eax, \bits
        mov esi, eax
        safely wrmsr
        xor ebx, ebx
        bit_if_ok \where
        safely rdmsr
        inc ebx
        bit_if_ok \where
        mov ecx, \msr
        safely rdmsr
        inc ebx
        bit_if_gave \where, rsi
        .endm

        .text
        .globl _start
_start:
        safe_setup
        flip IA32_PERF_GLOBAL_CTRL, 1, global_ctrl
        flip IA32_PERFEVTSEL0, 0xffff, selector
        flip IA32_PMC0, 0xffff, counter
        mov eax, 0xa
        xor ecx, ecx
        cpuid
        movzx eax, al
        mov [rip + version], eax
        mov eax, 1
        cpuid
        shr ecx, 15
        and ecx, 1
        mov [rip + pdcm], ecx
        xor ebx, ebx
        mov ecx, IA32_PERF_CAPABILITIES
        safely rdmsr
        bit_if_ok capabilities
        debug_exit 0

        .bss
        .balign 8
global_ctrl: .zero 8
selector: .zero 8
counter: .zero 8
capabilities: .zero 8
version: .zero 4
pdcm: .zero 4
        conformance_kit
