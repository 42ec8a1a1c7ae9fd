# LVTPC masks itself with the interrupt that it delivers, and an overflow that meets it masked is reported
# in GLOBAL_STATUS and interrupts neither then nor when LVTPC is unmasked.
#
# Cases, << 8 | counter (fixed counter 0 stands last): 1 unmasked before, 2 masked at the first overflow
# before anybody takes the interrupt, 3 that interrupt comes, 4 the second overflow sets the status,
# 5 and brings none, 6 still masked, 7 unmasking brings none, 8 nor masks, 9 the third overflow interrupts.
#
#: row X-lvtpc-mask
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: mem64(checks) == 9 * (COUNTERS + 1)
#: expect all: mem64(first_bad) == 0
#: expect all: mem64(failures) == 0
#: expect all: pmis == 2 * (COUNTERS + 1)

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ COUNTERS, 8
        .equ PERIOD, 50
        .equ MASKED, PMI_VECTOR | 1 << 16

        .text
        .globl _start
_start:
        safe_setup
        pmi_setup
        set_gate PMI_VECTOR, taken      # instead of the kit's, which unmasks
        pmu_setup

        mov r15d, IA32_PMC0
        xor r12d, r12d
counter:
        call overflow_thrice
        next_counter counter
        mov r12, [rip + gp]             # then fixed counter 0
        call overflow_thrice
        debug_exit 0

overflow_thrice:
        wrmsr_const IA32_X2APIC_LVT_PMI, PMI_VECTOR
        rdmsr_at IA32_X2APIC_LVT_PMI
        case 1
        judge PMI_VECTOR
        call overflow
        rdmsr_at IA32_X2APIC_LVT_PMI
        case 2
        judge MASKED
        case 3
        check_irq
        judge 1

        call overflow
        case 4
        judge r13
        case 5
        check_irq
        judge 0
        rdmsr_at IA32_X2APIC_LVT_PMI
        case 6
        judge MASKED
        wrmsr_const IA32_X2APIC_LVT_PMI, PMI_VECTOR
        case 7
        check_irq
        judge 0
        rdmsr_at IA32_X2APIC_LVT_PMI
        case 8
        judge PMI_VECTOR

        call overflow
        case 9
        check_irq
        judge 1
        ret

        # Counter r12 overflows with INT. rax = GLOBAL_STATUS, which is cleared, r13 = the counter's bit.
overflow:
        cmp r12, [rip + gp]
        je overflow_fixed
        mov rdi, -PERIOD
        start_gp EVT_INST_RETIRED_ANY_P, EVTSEL_INT
        global_bit
        call window
        stop_gp
        jmp overflow_status
overflow_fixed:
        xor r12d, r12d
        mov rdi, -PERIOD
        and rdi, [rip + fixed_mask]
        start_fixed FIXED_COUNTING | FIXED0_PMI
        global_bit fixed
        call window
        stop_fixed
        mov r12, [rip + gp]
overflow_status:
        rdmsr_at IA32_PERF_GLOBAL_STATUS
        mov rdi, rax
        wrmsr_at IA32_PERF_GLOBAL_STATUS_RESET
        mov rax, rdi
        ret

window:
        mov r13, rax
        wrmsr_at IA32_PERF_GLOBAL_CTRL
        mov ecx, PERIOD
        loop .
        xor eax, eax
        wrmsr_at IA32_PERF_GLOBAL_CTRL
        ret

taken:
        push rax
        push rcx
        push rdx
        inc qword ptr [rip + irqs]
        lapic_eoi
        pop rdx
        pop rcx
        pop rax
        iretq
        conformance_kit
