# HLT, and a timer that is masked.
#~ modes bare none
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: lapic_enable_x2apic
        wrmsr_const IA32_X2APIC_LVT_TIMER, 0x10050
        wrmsr_const IA32_X2APIC_INIT_COUNT, 1000
        sti
        hlt
#= halted at rip 0x100043 (halted_timer_masked.s:10)
#= why: HLT, and no interrupt is on its way
#= why: the APIC timer is masked (LVT_TIMER 0x10050)
