# No IDT, and an MSR that does not exist.
#~ modes bare none emulated passthrough mediated
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: mov ecx, 0x999
        rdmsr
        debug_exit 0
#= triple fault, first exception vector 13 at rip 0x100005 (no_idt.s:7)
#= why: rdmsr 0x999: there is no such MSR: #GP(0)
#= why: #GP is not delivered: no IDT is loaded: #DF(0)
#= why: #DF is not delivered: no IDT is loaded: a triple fault
