# The VMM saves the guest.
#~ modes none
#~ args --save SAVED --at 100
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: nop
        jmp _start
#= saved at rip 0x100000 (saved.s:7)
