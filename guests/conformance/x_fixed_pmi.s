# The interrupt of each fixed counter, if its PMI bit asks for it and only then, whatever the number of
# general-purpose counters is.
#
# Cases, << 8 | counter: 1 status and 2 interrupts with the PMI bit, 3 and 4 without.
#
#: row X-fixed-pmi
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect bare: mem64(checks) == 4 * 4
#: expect emulated passthrough: mem64(checks) == 3 * 4
#: expect all: mem64(first_bad) == 0
#: expect all: mem64(failures) == 0
#: expect bare: pmis == 4
#: expect emulated passthrough: pmis == 3

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ PERIOD, 50
        .equ TURNS, 6 * PERIOD          # of at least a sixth of a cycle, an instruction and a slot

        .text
        .globl _start
_start:
        safe_setup
        pmi_setup
        pmu_setup

        xor r12d, r12d
counter:
        mov ebx, 1
        call preset
        start_fixed FIXED_COUNTING | FIXED0_PMI
        call overflow
        mov ebx, 3
        call preset
        start_fixed
        call overflow
        next_counter counter, fixed
        debug_exit 0

preset:
        mov rdi, -PERIOD
        and rdi, [rip + fixed_mask]
        ret

overflow:
        global_bit fixed
        mov r13, rax
        wrmsr_at IA32_PERF_GLOBAL_CTRL
        mov ecx, TURNS
        loop .
        xor eax, eax
        wrmsr_at IA32_PERF_GLOBAL_CTRL
        stop_fixed
        rdmsr_at IA32_PERF_GLOBAL_STATUS
        case ebx
        judge r13
        mov rax, r13
        wrmsr_at IA32_PERF_GLOBAL_STATUS_RESET
        lea eax, [rbx + 1]
        case eax
        check_irq
        xor edx, edx
        cmp ebx, 1
        sete dl
        judge rdx
        ret
        conformance_kit
