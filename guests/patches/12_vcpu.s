# The guest's write to GLOBAL_STATUS_RESET is silicon's, which knows bits 58 to 61; KVM's own register has them
# reserved.
#
#: modes passthrough
#: expect all: r15 == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"
        .text
        .globl _start
_start:
        safe_setup
        mov rax, 1 << 60
        wrmsr_safe IA32_PERF_GLOBAL_STATUS_RESET
        mov r15, r9
        debug_exit 0

        conformance_kit
