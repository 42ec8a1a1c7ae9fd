# GLOBAL_CTRL passes, so that silicon decides which bits there are: fixed counter 3 is one that the guest's
# CPUID does not show. KVM's own register would be #GP.
#
#: modes passthrough
#: cpu spr
#: expect all: r15 == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"
        .text
        .globl _start
_start:
        safe_setup
        mov rax, 1 << 35
        wrmsr_safe IA32_PERF_GLOBAL_CTRL
        mov r15, r9
        debug_exit 0

        conformance_kit
