# Lesson 6: a sampling kernel, `perf record` in two hundred lines.
#
# The kernel runs some work in three functions and wants to know where the instructions go. Two
# interrupts come in between, as in a real kernel:
#   - the tick: the APIC timer in TSC-deadline mode, armed again by each tick;
#   - the PMI, every PERIOD instructions. Linux lets LVTPC deliver it as an NMI, so that code which has
#     interrupts off is sampled as well, and so does this kernel. NMIs know no EOI, and none comes in
#     while the handler of another one runs: the processor waits for IRETQ.
# Each PMI writes a record, RIP and TSC, into a buffer; that is what perf.data holds. When the buffer is
# full the kernel counts which function each sample fell into and draws a histogram on the serial port.
#
# The samples are exact (no skid), the histogram is not: it is a statistic. What each mode must agree on
# is the number of samples, that none is lost, and the order of the functions.
#
# A tick costs a guest two VM exits, and with the emulated vPMU far more: KVM counts the instruction it
# emulated, and to do so stops the perf event, gives it a new period and starts it again. With a TICK of
# 10000 cycles this kernel would do nothing but tick (try it: every sample lands in `kernel`).
#
# Watch what sampling costs: r15 is the time from the first instruction of the work to the last, in cycles
# (`vpmu run --json` shows it under `registers`). Compare the modes.
#
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: pmis == SAMPLES
#: expect all: mem64(histogram) + mem64(histogram + 8) + mem64(histogram + 16) + mem64(histogram + 24) == SAMPLES
#: expect all: mem64(histogram) - mem64(histogram + 8) > 0
#: expect all: mem64(histogram + 8) > 0
#: expect all: mem64(ticks) >= 1
#: expect all: mem64(backwards) == 0
#: expect all: global_status == 0
# A sample costs a bare kernel its MSR writes, a guest some thousand cycles of VM exits on top.
#: expect bare: r15 < CHEAP
#: expect emulated passthrough mediated: r15 > DEAR
#: expect all: msr.IA32_X2APIC_LVT_PMI.writes == SAMPLES + 1
#: expect all: msr.IA32_TSC_DEADLINE.writes == mem64(ticks) + 2
# The host's PMI is an NMI too. With the emulated vPMU it is the guest's counter that raised it; passed
# through, the guest's PMI comes as the maskable vector 0xf5, so that the host can tell its own NMIs apart.
#: expect emulated: exits.EXCEPTION_NMI == SAMPLES
#: expect passthrough mediated: exits.EXCEPTION_NMI == 0
#: expect emulated: exits.MSR_WRITE >= SAMPLES * 5
# The tick's deadline is virtual in both, and LVTPC exits too: KVM owns the APIC.
#: expect emulated passthrough mediated: msr.IA32_X2APIC_LVT_PMI.exits == SAMPLES + 1

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .ifndef PERIOD
        .equ PERIOD, 101                # a prime: no loop of the work divides it
        .endif
        .equ SAMPLES, 24
        .equ RECORD, 16                 # bytes: RIP, TSC
        .equ TICK, 100000               # cycles
        .equ TICK_VECTOR, 0x41
        .equ NMI, 2
        .equ FUNCTIONS, 3
        .equ CHEAP, SAMPLES * 2000      # cycles
        .equ DEAR, SAMPLES * 5000

        .text
        .globl _start
_start:
        lapic_enable_x2apic
        load_idt
        set_gate NMI, pmi
        set_gate TICK_VECTOR, tick
        wrmsr_const IA32_X2APIC_LVT_TIMER, TICK_VECTOR | LVT_TIMER_TSC_DEADLINE
        wrmsr_const IA32_X2APIC_LVT_PMI, LVT_NMI

        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_USR | EVTSEL_INT | EVTSEL_EN
        wrmsr_const IA32_PMC0, -PERIOD & 0xffffffff
        call arm_tick
        sti
        rdtsc
        shl rdx, 32
        or rax, rdx
        mov r15, rax
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0

# The work: most of it in alpha, some in beta, little in gamma.
work:
        call alpha
        call beta
        call gamma
        cmp dword ptr [rip + taken], SAMPLES
        jb work

        rdtsc
        shl rdx, 32
        or rax, rdx
        sub rax, r15
        mov r15, rax

        # Nothing left to do: idle until there was a tick. STI lets interrupts in only after the next
        # instruction, so none can slip in between the test and HLT and leave the kernel asleep.
idle:
        cli
        cmp qword ptr [rip + ticks], 0
        jne awake
        sti
        hlt
        jmp idle
awake:
        # No further tick: a deadline of 0 disarms the timer.
        wrmsr_const IA32_TSC_DEADLINE, 0
        jmp report

alpha:
        mov ecx, 60
1:      dec ecx
        jnz 1b
        ret
beta:
        mov ecx, 30
1:      dec ecx
        jnz 1b
        ret
gamma:
        mov ecx, 8
1:      dec ecx
        jnz 1b
        ret
gamma_end:

# Let the timer fire TICK cycles from now. Destroys rax, ecx, rdx.
arm_tick:
        rdtsc
        shl rdx, 32
        or rax, rdx
        add rax, TICK
        wrmsr_rax IA32_TSC_DEADLINE
        ret

tick:
        push rax
        push rcx
        push rdx
        inc qword ptr [rip + ticks]
        call arm_tick
        lapic_eoi
        pop rdx
        pop rcx
        pop rax
        iretq

# perf_event_nmi_handler of this kernel.
pmi:
        push rax
        push rcx
        push rdx
        push rbx
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0

        # Is it ours? Nothing else raises NMIs here, but a kernel has to ask.
        rdmsr_rax IA32_PERF_GLOBAL_STATUS
        test eax, GLOBAL_PMC0
        jz pmi_done
        wrmsr_rax IA32_PERF_GLOBAL_STATUS_RESET

        # The record: where, and when.
        mov ebx, [rip + taken]
        cmp ebx, SAMPLES
        jae pmi_done
        inc dword ptr [rip + taken]
        shl ebx, 4                      # * RECORD
        lea rcx, [rip + records]
        add rbx, rcx
        mov rax, [rsp + 32]             # above the four registers lies the interrupted RIP
        mov [rbx], rax
        rdtsc
        shl rdx, 32
        or rax, rdx
        mov [rbx + 8], rax

        # The next period.
        wrmsr_const IA32_PMC0, -PERIOD & 0xffffffff
        wrmsr_const IA32_X2APIC_LVT_PMI, LVT_NMI
        cmp dword ptr [rip + taken], SAMPLES
        jae pmi_done
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
pmi_done:
        pop rbx
        pop rdx
        pop rcx
        pop rax
        iretq

# `perf report`: which function does each sample belong to?
report:
        lea rsi, [rip + records]
        lea rdi, [rip + histogram]
        mov ecx, SAMPLES
        xor r9d, r9d                    # the time of the sample before
next_sample:
        mov rax, [rsi]
        lea rdx, [rip + borders]
        xor ebx, ebx
        # Function n lies between borders n and n + 1; what lies elsewhere is the kernel's own.
        cmp rax, [rdx]
        jb not_found
find:
        cmp rax, [rdx + rbx * 8 + 8]
        jb found
        inc ebx
        cmp ebx, FUNCTIONS
        jb find
not_found:
        mov ebx, FUNCTIONS
found:
        inc qword ptr [rdi + rbx * 8]
        # Time never runs backwards.
        mov rax, [rsi + 8]
        cmp rax, r9
        jae in_order
        inc qword ptr [rip + backwards]
in_order:
        mov r9, rax
        add rsi, RECORD
        dec ecx
        jnz next_sample

        # One line for each: its name, and a mark for each sample.
        xor ebx, ebx
        lea r8, [rip + names]
line:
        mov rsi, r8
        mov dx, COM1
letter:
        lodsb
        test al, al
        jz marks
        out dx, al
        jmp letter
marks:
        mov r8, rsi                     # the next name begins behind the zero
        lea rdi, [rip + histogram]
        mov rcx, [rdi + rbx * 8]
        mov al, '#'
mark:
        jrcxz marked
        out dx, al
        dec rcx
        jmp mark
marked:
        putc 10
        inc ebx
        cmp ebx, FUNCTIONS + 1
        jb line

        mov eax, [rip + taken]
        cmp eax, SAMPLES
        fail_unless_equal 1
        debug_exit 0

        .data
        .balign 8
borders:
        .quad alpha, beta, gamma, gamma_end
names:
        .asciz "alpha  "
        .asciz "beta   "
        .asciz "gamma  "
        .asciz "kernel "

        .bss
        .balign 16
records:
        .zero RECORD * SAMPLES
histogram:
        .zero 8 * (FUNCTIONS + 1)
ticks:
        .zero 8
backwards:
        .zero 8
taken:
        .zero 4
        idt_storage
