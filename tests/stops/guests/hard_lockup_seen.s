# The same with a watchdog.
#~ modes none
#~ args --host lockup.s --watchdog hpet --watchdog-thresh 0.0002
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
_start: jmp _start
#= hard lockup of CPU 0 at rip 0x100000 (hard_lockup_seen.s:7)
#= why: CPU 0 of the host does not serve its interrupts
#= why: the watchdog (hpet) has seen it, and hardlockup_panic is set
