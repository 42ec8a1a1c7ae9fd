# An instruction of the kernel at CPL 3.
#~ modes bare emulated
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: load_tss
        load_idt
        push_user_frame user
        iretq
user:   hlt
        idt_storage
        ring3_storage
#= triple fault, first exception vector 13 at rip 0x100064 (refused_ring3.s:10)
#= why: `hlt` is refused at CPL 3: #GP(0)
#= why: #GP is not delivered: its gate in the IDT is empty: #DF(0)
#= why: #DF is not delivered: its gate in the IDT is empty: a triple fault
