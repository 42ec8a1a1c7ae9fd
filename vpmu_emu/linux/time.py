"""The interrupt of the local timer serves every timer of this CPU that has run out, then arms the next.

kernel/time/hrtimer.c, tick-sched.c.
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.linux.hrtimer import host_timer_program
from vpmu_emu.linux.native import cost, retire_work
from vpmu_emu.linux.percpu import this_core, this_cpu
from vpmu_emu.linux.perf.pmi import handle_nmis
from vpmu_emu.linux.perf.swevent import perf_swevent_hrtimer
from vpmu_emu.linux.perf.tick import perf_event_task_tick, perf_mux_hrtimer_handler
from vpmu_emu.linux.sched import scheduler_tick, wake_sleepers
from vpmu_emu.linux.state import FROM_KERNEL
from vpmu_emu.linux.watchdog import watchdog_timer_fn
from vpmu_emu.machine.state import NEVER
from vpmu_emu.machine.u64 import ONE

COST_TIMER = cost("timer_interrupt")


@jit()
def sysvec_apic_timer_interrupt(S, E):
    """Rotation of flexible events, the tick, sleepers to wake; then the timer is armed again."""
    host = this_cpu(S)
    now = this_core(S).t
    host.timer_irqs += ONE
    host.interrupted_row = host.row
    host.timer_at = NEVER
    retire_work(S, E, COST_TIMER)
    if host.mux_at <= now:
        perf_mux_hrtimer_handler(S, E)
    if host.tick_at <= now:
        perf_event_task_tick(S, E)
        scheduler_tick(S)
    if host.watchdog_at <= now:
        watchdog_timer_fn(S, E)
    if host.clock_at <= now:
        perf_swevent_hrtimer(S, E)
    wake_sleepers(S)
    host_timer_program(S, E)
    host.interrupted = FROM_KERNEL  # by an NMI from now on
    handle_nmis(S, E)
