# HLT with interrupts off.
#~ modes bare none
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: cli
        hlt
#= halted at rip 0x100002 (halted_off.s:7)
#= why: HLT with interrupts off (IF = 0): only an NMI would go on from here
