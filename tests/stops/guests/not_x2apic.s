# A register of an APIC that is not in x2APIC mode.
#~ modes bare emulated
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: mov ecx, IA32_X2APIC_LVT_PMI
        rdmsr
        debug_exit 0
#= triple fault, first exception vector 13 at rip 0x100005 (not_x2apic.s:7)
#= why: rdmsr IA32_X2APIC_LVT_PMI (0x834): not in x2APIC mode: #GP(0)
#= why: #GP is not delivered: no IDT is loaded: #DF(0)
#= why: #DF is not delivered: no IDT is loaded: a triple fault
