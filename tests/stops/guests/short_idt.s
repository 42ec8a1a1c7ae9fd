# An IDT that ends before the gate.
#~ modes bare emulated
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: lidt [rip + small]
        ud2
        .data
small:  .word 0x2f
        .quad gates
gates:  .zero 48
#= triple fault, first exception vector 6 at rip 0x100007 (short_idt.s:7)
#= why: `ud2` is there to raise it: #UD
#= why: #UD is not delivered: the IDT has 3 gates (its limit is 0x2f): #GP(0x33)
#= why: #GP is not delivered: the IDT has 3 gates (its limit is 0x2f): #DF(0)
#= why: #DF is not delivered: the IDT has 3 gates (its limit is 0x2f): a triple fault
