# A gate that is not present.
#~ modes bare emulated
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: load_idt
        set_gate 6, there
        and byte ptr [rip + idt + 6 * 16 + 5], 0x7f
there:  ud2
        idt_storage
#= triple fault, first exception vector 6 at rip 0x100045 (gate_absent.s:9)
#= why: `ud2` is there to raise it: #UD
#= why: #UD is not delivered: its gate is not present: #NP(0x33)
#= why: #NP is not delivered: its gate in the IDT is empty: #DF(0)
#= why: #DF is not delivered: its gate in the IDT is empty: a triple fault
