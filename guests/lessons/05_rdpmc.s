# Lesson 5: RDPMC, the short way to a counter.
#
# RDPMC reads a counter in about 20 cycles, RDMSR needs some 60, and user code may use it if the kernel
# sets CR4.PCE. ECX selects: n for IA32_PMCn, 0x40000000 + n for IA32_FIXED_CTRn.
#
# Who answers? Under the emulated vPMU every RDPMC leaves the guest ("RDPMC exiting", all or nothing: no
# bitmap has a say). Passed through, none does. That makes a difference for counters that the VM was not
# given: KVM raises #GP for them, but the hardware that answers directly has them. The first version of
# the passthrough patches therefore sets what it does not expose to 0.
#
# Ring 3 without CR4.PCE gets #GP, and on Intel's processors that comes before the exit: the hypervisor
# does not even notice.
#
# This kernel handles #GP by going on at the address in r15, with r14 counting the faults.
#
#: cpu spr
#: modes bare emulated passthrough mediated
#: expect all: exit_code == 0
#: expect all: mem64(from_rdpmc) == pmc0
#: expect all: mem64(from_rdmsr) == pmc0
#: expect all: mem64(from_fixed) == fixed0
#: expect all: mem64(from_user) == pmc0
#: expect all: pmc0 == insns(opened, closed)
# Faults: a counter that no processor has, ring 3 without PCE. The fourth fixed counter (3) exists in this
# hardware, but KVM gives a guest three.
#: expect bare: r14 == 2
#: expect emulated mediated: r14 == 3
#: expect passthrough: r14 == 2
#: expect bare: mem64(from_fixed3) == SLOTS
#: expect emulated mediated: mem64(from_fixed3) == UNTOUCHED
#: expect passthrough: mem64(from_fixed3) == 0
# Exits: counter 0, fixed 0, fixed 3, counter 63 and ring 3 with PCE.
#: expect bare: exits.RDPMC == 0
# As merged, RDPMC exits too, because of fixed 3: its guest would read a counter that it does not have.
#: expect emulated mediated: exits.RDPMC == 5
#: expect passthrough: exits.RDPMC == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .equ GENERAL_PROTECTION, 13
        .equ BACK, 0x80
        .equ SLOTS, 0x1234              # what the kernel leaves in fixed counter 3 where it can
        .equ UNTOUCHED, 0x5555

        .text
        .globl _start
_start:
        # As in lesson 2: a TSS for the way back from ring 3.
        load_tss
        load_idt
        set_gate GENERAL_PROTECTION, fault
        set_gate BACK, back, 3
        xor r14d, r14d

        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_USR | EVTSEL_EN
        wrmsr_const IA32_FIXED_CTR_CTRL, FIXED0_OS | FIXED0_USR
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0 | GLOBAL_FIXED0
opened:
        .rept 20
        nop
        .endr
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
closed:
        # The kernel's two ways.
        rdpmc_to from_rdpmc, 0
        rdmsr_rax IA32_PMC0
        mov [rip + from_rdmsr], rax
        rdpmc_to from_fixed, RDPMC_FIXED | 0

        # A fourth fixed counter? CPUID leaf 0AH, EDX[4:0] is how many there are: write it if it is there.
        mov eax, 0xa
        xor ecx, ecx
        cpuid
        and edx, 31
        cmp edx, 4
        jb no_fixed3
        wrmsr_const IA32_FIXED_CTR3, SLOTS
no_fixed3:
        # Reading it anyhow is what a guest should not do.
        lea r15, [rip + after_fixed3]
        rdpmc_to from_fixed3, RDPMC_FIXED | 3
after_fixed3:
        # No processor has a counter 63.
        lea r15, [rip + after_63]
        mov ecx, 63
        rdpmc
        debug_exit 1
after_63:
        # Ring 3, twice: without CR4.PCE, then with it.
        lea r15, [rip + with_pce]
        jmp to_user
with_pce:
        mov rax, cr4
        or eax, CR4_PCE
        mov cr4, rax
        lea r15, [rip + last]
to_user:
        push_user_frame user
        iretq

user:
        rdpmc_to from_user, 0
        int BACK

        # INT and #GP both come here; an error code lies on top of the stack after #GP only, but as this
        # kernel never returns to what was interrupted, it just starts afresh with an empty stack.
fault:
        inc r14
back:
        lea rsp, [rip + kernel_stack_end]
        jmp r15

last:
        mov rax, [rip + from_user]
        cmp rax, [rip + from_rdmsr]
        fail_unless_equal 2
        debug_exit 0

        .data
        .balign 8
from_fixed3:
        .quad UNTOUCHED

        .bss
        .balign 8
from_rdpmc:
        .zero 8
from_rdmsr:
        .zero 8
from_fixed:
        .zero 8
from_user:
        .zero 8
        ring3_storage
        idt_storage
