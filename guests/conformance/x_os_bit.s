# OS and USR: a counter counts ring 0, ring 3, both or neither, as its selector says; an instruction that
# KVM emulates counts in the ring it stands in, too.
#
# Every counter in turn, with each of the four choices, watches the same window: IRETQ to ring 3, some
# instructions, INT back. A case is (1 none, 2 USR, 3 OS, 4 both) << 8 | counter; fixed counters: 5 to 8.
#
#: row X-os-bit
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: mem64(first_bad) == 0
#: expect all: mem64(failures) == 0
#: expect all: mem64(checks) == 4 * (COUNTERS + 1)
#: expect all: mem64(counts) == 0
#: expect all: mem64(counts + 8) == insns(user, user_end)
#: expect all: mem64(counts + 16) == insns(opened, leaving) + insns(back, closed)
#: expect all: mem64(counts + 24) == mem64(counts + 8) + mem64(counts + 16)
#: expect all: fixed0 == mem64(counts + 24)

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ COUNTERS, 8
        .equ BACK, 0x80
        .equ IN_RING_3, 9
        .equ IN_RING_0, 14

        .text
        .globl _start
_start:
        load_tss
        safe_setup
        set_gate BACK, back, 3
        pmu_setup

        mov r15d, IA32_PMC0
        xor r12d, r12d
counter:
        xor r13d, r13d                  # the choice: bit 0 USR, bit 1 OS
choice:
        xor eax, eax
        wrmsr_at r15 + r12
        mov eax, r13d
        shl eax, 16
        or eax, EVT_INST_RETIRED_ANY_P | EVTSEL_EN
        wrmsr_at r12 + IA32_PERFEVTSEL0
        global_bit
        call window
        stop_gp
        lea rcx, [rip + counts]
        mov [rcx + r13 * 8], rax
        lea ecx, [r13 + 1]
        case ecx
        lea rdi, [rip + expected]
        judge [rdi + r13 * 8]
        inc r13d
        cmp r13d, 4
        jb choice
        next_counter counter

        xor r13d, r13d                  # fixed counter 0: bit 0 OS, bit 1 USR
        lea rbx, [rip + fixed_fields]
fixed_choice:
        xor edi, edi
        start_fixed [rbx]
        global_bit fixed
        call window
        stop_fixed
        lea ecx, [r13 + 5]
        case ecx
        lea rdi, [rip + expected]
        judge [rdi + r13 * 8]
        add rbx, 4
        inc r13d
        cmp r13d, 4
        jb fixed_choice
        debug_exit 0

        # A window with the counters of rax.
window:
        mov rbp, rsp
        wrmsr_at IA32_PERF_GLOBAL_CTRL
opened:
        push_user_frame user
        iretq
leaving:

user:
        .rept IN_RING_3 - 1
        nop
        .endr
        int BACK
user_end:

back:
        mov rsp, rbp
        xor eax, eax
        wrmsr_at IA32_PERF_GLOBAL_CTRL
closed:
        ret

        .data
        .balign 8
expected:
        .quad 0, IN_RING_3, IN_RING_0, IN_RING_0 + IN_RING_3
fixed_fields:
        .long 0, FIXED0_USR, FIXED0_OS, FIXED0_USR | FIXED0_OS

        .bss
        .balign 8
counts: .zero 8 * 4
        ring3_storage
        conformance_kit
