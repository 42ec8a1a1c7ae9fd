# RDPMC at CPL 3 without CR4.PCE.
#~ modes bare emulated
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: load_tss
        load_idt
        push_user_frame user
        iretq
user:   mov ecx, 0
        rdpmc
        idt_storage
        ring3_storage
#= triple fault, first exception vector 13 at rip 0x100069 (rdpmc_ring3.s:11)
#= why: rdpmc at CPL 3 with CR4.PCE 0: #GP(0)
#= why: #GP is not delivered: its gate in the IDT is empty: #DF(0)
#= why: #DF is not delivered: its gate in the IDT is empty: a triple fault
