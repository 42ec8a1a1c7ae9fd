# The program ends itself.
#~ modes bare emulated
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: debug_exit 3
#= exit with code 3 at rip 0x100004 (exit.s:6)
