# A CPU of the host is locked up, and nobody looks.
#~ modes none
#~ args --host lockup.s
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: jmp _start
#= hard lockup of CPU 0 at rip 0x100000 (hard_lockup.s:7)
#= why: CPU 0 of the host does not serve its interrupts
#= why: nobody looks for that (--watchdog off), and nothing else can happen
