# An instruction that the emulated set has not.
#~ modes bare emulated
        .intel_syntax noprefix
_start: .byte 0x0f, 0x58, 0xc1          # addps xmm0, xmm1
#= triple fault, first exception vector 6 at rip 0x100000 (outside.s:4)
#= why: the instruction at 0x100000 is no instruction of this processor as it is set up: #UD
#= why: #UD is not delivered: no IDT is loaded: #GP(0x33)
#= why: #GP is not delivered: no IDT is loaded: #DF(0)
#= why: #DF is not delivered: no IDT is loaded: a triple fault
#= note: the instruction at 0x100000 (outside.s:4), bytes 0f 58 c1 00 00 00 00 00 …, is outside of the emulated instruction set (SSE: compile with -mgeneral-regs-only); the program got #UD
