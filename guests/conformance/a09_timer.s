# The timer of the local APIC: one shot, periodic, the change between the two while it counts, and deadlines.
#
#: row A9
#: row A10
#: row A11
#: upstream x86/apic.c test_apic_timer_one_shot, test_apic_change_mode, test_tsc_deadline_timer
#: modes bare none emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: mem64(failures) == 0
#: expect all: mem64(checks) == 17

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"
        .include "apic.inc"

        .equ VECTOR, 0xee
        .equ PERIODIC, 1 << 17
        .equ DEADLINE, 2 << 17
        .equ MASKED, 1 << 16
        .equ BY_1, 11
        .equ INTERVAL, 0x1000
        .equ COUNT, 0x8000

        .macro timer_mode bits
        mov eax, VECTOR | MASKED | \bits
        wrmsr_at IA32_X2APIC_LVT_TIMER
        .endm

        .macro initial count
        mov eax, \count
        wrmsr_at IA32_X2APIC_INIT_COUNT
        .endm

# rax = the current count is `how` than half of COUNT (or of 0).
        .macro count_is set_how, what
        rdmsr_at IA32_X2APIC_CUR_COUNT
        cmp eax, \what
        \set_how al
        movzx eax, al
        .endm

        .macro wait_below what
8:      rdmsr_at IA32_X2APIC_CUR_COUNT
        cmp eax, \what
        ja 8b
        .endm

        .text
        .globl _start
_start:
        count_interrupts VECTOR
        lapic_enable_x2apic
        mov eax, BY_1
        wrmsr_at IA32_X2APIC_DIV_CONF
        case 1                          # one shot
        mov eax, VECTOR
        wrmsr_at IA32_X2APIC_LVT_TIMER
        sti
        initial INTERVAL
1:      cmp qword ptr [rip + taken], 0
        je 1b
        .rept 64
        pause
        .endr
        cli
        mov rax, [rip + taken]
        judge 1
        case 2                          # a count goes on when the mode changes
        timer_mode 0
        initial COUNT
        timer_mode PERIODIC
        rdmsr_at IA32_X2APIC_INIT_COUNT
        judge COUNT
        timer_mode 0
        initial COUNT
        count_is seta, 0
        judge 1
        wait_below 0
        count_is sete, 0
        judge 1
        case 3                          # from one shot to periodic
        initial COUNT
        wait_below COUNT / 2
        timer_mode PERIODIC
        count_is seta, 0
        judge 1
        count_is setb, COUNT / 2
        judge 1
2:      rdmsr_at IA32_X2APIC_CUR_COUNT  # until it begins anew
        cmp eax, COUNT / 2
        jbe 2b
        case 4                          # and back
        wait_below COUNT / 2
        timer_mode 0
        count_is setb, COUNT / 2
        judge 1
        wait_below 0
        count_is sete, 0
        judge 1
        timer_mode PERIODIC
        count_is sete, 0
        judge 1
        case 5                          # a deadline in the past comes at once, and reads 0
        mov eax, VECTOR | DEADLINE
        wrmsr_at IA32_X2APIC_LVT_TIMER
        rdmsr_at IA32_X2APIC_INIT_COUNT
        judge 0
        mov qword ptr [rip + taken], 0
        sti
        rdtsc
        shl rdx, 32
        or rax, rdx
        wrmsr_at IA32_TSC_DEADLINE
        nop
        cli
        mov rax, [rip + taken]
        judge 1
        rdmsr_at IA32_TSC_DEADLINE
        judge 0
        case 6                          # one in the future stays until another mode forgets it
        mov rbx, 1 << 60
        mov rax, rbx
        wrmsr_at IA32_TSC_DEADLINE
        rdmsr_at IA32_TSC_DEADLINE
        judge rbx
        initial COUNT                   # ignored
        rdmsr_at IA32_X2APIC_INIT_COUNT
        judge 0
        timer_mode 0
        rdmsr_at IA32_TSC_DEADLINE
        judge 0
        mov rax, rbx
        wrmsr_at IA32_TSC_DEADLINE      # ignored
        rdmsr_at IA32_TSC_DEADLINE
        judge 0
        mov rax, [rip + taken]
        judge 1
        debug_exit 0

        apic_kit
        conformance_kit
