# HLT of the first processor; the second was never started.
#~ modes bare
#~ args --cores 2
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: cli
        hlt
#= halted at rip 0x100002 (halted_cores.s:8)
#= why: CPU 0: HLT with interrupts off (IF = 0): only an NMI would go on from here
#= why: CPU 1: nobody has started it: it waits for a SIPI
