# The program resets the machine.
#~ modes bare none
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: mov al, 0xfe
        out 0x64, al
        hlt
#= reset at rip 0x100004 (reset.s:7)
#= why: port 0x64, port 0xcf9 or an INIT to itself resets the machine, and there is no firmware to start
