# Branch records are off while the guest's thread sleeps; then it looks for them.
#
#: modes bare emulated
#: args --cpu icx --guest pmu.perf_caps=0x2005
#: expect bare: rax == 0x100000
#: expect emulated: rax == 0

        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"

        .text
        .globl _start
_start:
        load_idt
        set_gate 0x20, timer
        lapic_enable_x2apic
        wrmsr_const IA32_X2APIC_LVT_TIMER, 0x20
        wrmsr_const IA32_DEBUGCTL, 1
        jmp 1f
1:      jmp 2f
2:
        wrmsr_const IA32_DEBUGCTL, 0
        mov ecx, 0x681
        rdmsr
        call sleep
        call sleep
        mov ecx, 0x681
        rdmsr
        debug_exit 0
sleep:  mov eax, 50000
        mov ecx, IA32_X2APIC_INIT_COUNT
        xor edx, edx
        wrmsr
        sti
        hlt
        cli
        ret
timer:  push rax
        push rcx
        push rdx
        lapic_eoi
        pop rdx
        pop rcx
        pop rax
        iretq
        idt_storage
        .text
