# The same, and a bound on time.
#~ modes bare none
#~ args --max-cycles 1000000
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: jmp _start
#= max-cycles at rip 0x100000 (limit_cycles.s:7)
