# A handler that does what it was called for.
#~ modes bare emulated
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: load_idt
        set_gate 13, gp
        mov rsp, 0x700
gp:     mov ecx, 0x999
        rdmsr
        idt_storage
#= triple fault, first exception vector 13 at rip 0x10004d (again.s:10)
#= why: rdmsr 0x999: there is no such MSR: #GP(0)
#= why: it is the handler of #GP that raises #GP here, again and again
#= why: #GP is not delivered: its gate has selector 0x8, no 64-bit code to enter (#GP(0x8)): #DF(0)
#= why: #DF is not delivered: its gate in the IDT is empty: a triple fault
