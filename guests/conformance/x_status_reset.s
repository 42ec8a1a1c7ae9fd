# GLOBAL_STATUS_RESET clears the bits that are written as 1 and no others. All general-purpose counters and
# fixed counter 0 overflow in one window; then their bits are cleared one by one.
#
# Cases: 1 all bits are set; 2 << 8 | counter the bits that are left after one was cleared; 3 writing 0
# changes nothing, nor does writing a bit that is clear (4).
#
#: row X-status-reset
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: mem64(checks) == COUNTERS + 3
#: expect all: mem64(first_bad) == 0
#: expect all: mem64(failures) == 0
#: expect all: mem64(all_bits) == GLOBAL_FIXED0 | 0xff
#: expect all: global_status == GLOBAL_PMC3
#: expect all: msr.IA32_PERF_GLOBAL_STATUS_RESET.writes == COUNTERS + 3

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ COUNTERS, 8
        .equ PERIOD, 50
        .equ LAST, 3                    # the counter whose bit stays

        .text
        .globl _start
_start:
        safe_setup
        pmu_setup

        mov r15d, IA32_PMC0
        xor r12d, r12d
        xor r13d, r13d
counter:
        mov rdi, -PERIOD
        start_gp EVT_INST_RETIRED_ANY_P
        global_bit
        or r13, rax
        next_counter counter
        mov rdi, -PERIOD
        and rdi, [rip + fixed_mask]
        start_fixed
        global_bit fixed
        or r13, rax
        mov rax, r13
        wrmsr_at IA32_PERF_GLOBAL_CTRL
        mov ecx, PERIOD
        loop .
        xor eax, eax
        wrmsr_at IA32_PERF_GLOBAL_CTRL
        rdmsr_at IA32_PERF_GLOBAL_STATUS
        mov [rip + all_bits], rax
        case 1
        judge r13

        xor eax, eax
        wrmsr_at IA32_PERF_GLOBAL_STATUS_RESET
        rdmsr_at IA32_PERF_GLOBAL_STATUS
        case 3
        judge r13

        xor r12d, r12d
clear_one:
        cmp r12d, LAST
        je kept
        global_bit
        call clear
kept:
        next_counter clear_one
        global_bit fixed
        call clear
        mov ecx, [rip + gp]             # every bit but the last one that is set
        mov eax, 1
        shl rax, cl
        dec rax
        bts rax, 32
        btr rax, LAST
        wrmsr_at IA32_PERF_GLOBAL_STATUS_RESET
        rdmsr_at IA32_PERF_GLOBAL_STATUS
        case 4
        judge 1 << LAST
        debug_exit 0

        # Clear the bits of rax, and those only.
clear:
        xor r13, rax
        wrmsr_at IA32_PERF_GLOBAL_STATUS_RESET
        rdmsr_at IA32_PERF_GLOBAL_STATUS
        case 2
        judge r13
        ret

        .bss
        .balign 8
all_bits:
        .zero 8
        conformance_kit
