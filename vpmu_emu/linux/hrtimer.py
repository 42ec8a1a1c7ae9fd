"""The timer hardware of a CPU is armed for the first of its kernel's timers, and for nothing else.

kernel/time/hrtimer.c, tick_program_event().
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.linux.native import wrmsrl
from vpmu_emu.linux.percpu import this_core, this_cpu
from vpmu_emu.linux.sched import next_wakeup
from vpmu_emu.machine import msr_index
from vpmu_emu.machine.clock import tsc_reaching
from vpmu_emu.machine.state import NEVER
from vpmu_emu.machine.u64 import ZERO


@jit()
def host_timer_program(S, E):
    """Arm the local APIC's TSC deadline for the next timer of this CPU (tick_program_event)."""
    host = this_cpu(S)
    at = min(min(host.mux_at, host.tick_at), min(next_wakeup(S), host.watchdog_at))
    at = min(at, host.clock_at)
    if at != host.timer_at:
        host.timer_at = at
        deadline = ZERO
        if at != NEVER:
            core = this_core(S)
            deadline = tsc_reaching(core, at) + core.tsc_adjust
        wrmsrl(S, E, msr_index.MSR_IA32_TSC_DEADLINE, deadline)
