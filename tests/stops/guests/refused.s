# A #GP without an access that the machine tells of.
#~ modes bare emulated
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: mov rax, 1 << 40
        mov cr4, rax
#= triple fault, first exception vector 13 at rip 0x10000a (refused.s:7)
#= why: `mov cr4, rax` is refused at CPL 0: #GP(0)
#= why: #GP is not delivered: no IDT is loaded: #DF(0)
#= why: #DF is not delivered: no IDT is loaded: a triple fault
