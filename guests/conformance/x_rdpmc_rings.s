# RDPMC in ring 3: CR4.PCE decides, before the hypervisor hears of it.
#
# Without PCE it is #GP for every index, and no exit. With PCE it is as in ring 0: where RDPMC exits KVM
# answers, a wrong index is #GP after the exit, and a good one gives the counter.
#
# User code asks for a general-purpose counter, a fixed one, and one that no processor has.
#
#: row X-rdpmc-rings
#: modes bare none emulated passthrough mediated
#: expect all: exit_code == 0
# Bit 0 to 2: without PCE; bit 3 to 5: with it.
#: expect bare emulated passthrough: mem64(gave) == 0b011000
#: expect none: mem64(gave) == 0
#: expect bare emulated passthrough: mem64(faults) == 4
#: expect none: mem64(faults) == 6
#: expect emulated none: exits.RDPMC == 3
#: expect bare passthrough: exits.RDPMC == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .include "conformance.inc"

        .equ BACK, 0x80
        .equ IN_PMC0, 0x1234
        .equ IN_FIXED0, 0x5678

        .macro ask counter, want
        mov ecx, \counter
        safely rdpmc
        count_gp faults
        bit_if_gave gave, \want
        inc ebx
        .endm

        .text
        .globl _start
_start:
        load_tss
        safe_setup
        set_gate BACK, back, 3
        mov ecx, IA32_PMC0
        mov eax, IN_PMC0
        xor edx, edx
        safely wrmsr                    # without a vPMU: dropped, and #GP
        mov ecx, IA32_FIXED_CTR0
        mov eax, IN_FIXED0
        safely wrmsr
        xor ebx, ebx
to_user:
        push_user_frame user
        iretq

user:
        ask 0, IN_PMC0
        ask RDPMC_FIXED, IN_FIXED0
        ask 64, 0
        int BACK

back:
        lea rsp, [rsp + 40]
        cmp ebx, 6
        je end
        mov rax, cr4
        or eax, CR4_PCE
        mov cr4, rax
        jmp to_user
end:
        debug_exit 0

        .bss
        .balign 8
gave:   .zero 8
faults: .zero 8
        ring3_storage
        conformance_kit
