# Nothing ends the program: it goes on behind its last instruction.
#~ modes bare emulated
#~ args --max-insns 1000
        .intel_syntax noprefix
_start: nop
#= max-insns at rip 0x1007cf
#= why: 0x1007cf is 1,998 bytes behind the end of a section: nothing ended the program there
