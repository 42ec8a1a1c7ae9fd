# A timer that is set for the end of time.
#~ modes bare none
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: lapic_enable_x2apic
        wrmsr_const IA32_X2APIC_LVT_TIMER, 0x40050
        wrmsr_const IA32_TSC_DEADLINE, 0x7fffffffffffffff
        sti
        hlt
#= end-of-time at rip 0x100043
#= why: nothing happens before 2**63 sixteenths of a cycle are over
