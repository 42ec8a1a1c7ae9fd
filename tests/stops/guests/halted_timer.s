# HLT, and a timer that nobody has started.
#~ modes bare none
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: lapic_enable_x2apic
        wrmsr_const IA32_X2APIC_LVT_TIMER, 0x50
        sti
        hlt
#= halted at rip 0x100032 (halted_timer.s:9)
#= why: HLT, and no interrupt is on its way
#= why: the APIC timer (LVT_TIMER 0x50) is not armed, or its interrupt came before
