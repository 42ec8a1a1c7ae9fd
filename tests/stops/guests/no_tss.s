# A gate with an IST, and no TSS.
#~ modes bare emulated
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: load_idt
        set_gate 6, there
        mov byte ptr [rip + idt + 6 * 16 + 4], 1
there:  ud2
        idt_storage
#= triple fault, first exception vector 6 at rip 0x100045 (no_tss.s:9)
#= why: `ud2` is there to raise it: #UD
#= why: #UD is not delivered: the TSS has no stack for it (#TS(0)): #TS(0)
#= why: #TS is not delivered: its gate in the IDT is empty: #DF(0)
#= why: #DF is not delivered: its gate in the IDT is empty: a triple fault
