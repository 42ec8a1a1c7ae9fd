# A gate to a data segment.
#~ modes bare emulated
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: load_idt
        set_gate 6, there
        mov word ptr [rip + idt + 6 * 16 + 2], 0x10
there:  ud2
        idt_storage
#= triple fault, first exception vector 6 at rip 0x100047 (gate_code.s:9)
#= why: `ud2` is there to raise it: #UD
#= why: #UD is not delivered: its gate has selector 0x10, no 64-bit code to enter (#GP(0x10)): #GP(0x10)
#= why: #GP is not delivered: its gate in the IDT is empty: #DF(0)
#= why: #DF is not delivered: its gate in the IDT is empty: a triple fault
