# HLT with interrupts on, and nothing that interrupts.
#~ modes bare none
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: sti
        hlt
#= halted at rip 0x100002 (halted_on.s:7)
#= why: HLT, and no interrupt is on its way
