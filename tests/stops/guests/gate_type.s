# A gate of another type.
#~ modes bare emulated
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: load_idt
        set_gate 6, there
        mov byte ptr [rip + idt + 6 * 16 + 5], 0x8c
there:  ud2
        idt_storage
#= triple fault, first exception vector 6 at rip 0x100045 (gate_type.s:9)
#= why: `ud2` is there to raise it: #UD
#= why: #UD is not delivered: its gate is of type 0xc, and not an interrupt gate (0xe) or a trap gate (0xf): #GP(0x33)
#= why: #GP is not delivered: its gate in the IDT is empty: #DF(0)
#= why: #DF is not delivered: its gate in the IDT is empty: a triple fault
