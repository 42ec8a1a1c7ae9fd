# INT n at CPL 3 through a gate for CPL 0.
#~ modes bare emulated
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: load_tss
        load_idt
        set_gate 0x40, user
        push_user_frame user
        iretq
user:   int 0x40
        idt_storage
        ring3_storage
#= triple fault, first exception vector 13 at rip 0x10009e (int_ring3.s:11)
#= why: int 0x40 is not delivered: its gate is not for `int` at CPL 3, its DPL is 0: #GP(0x202)
#= why: #GP is not delivered: its gate in the IDT is empty: #DF(0)
#= why: #DF is not delivered: its gate in the IDT is empty: a triple fault
