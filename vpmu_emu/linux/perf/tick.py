"""What perf does by the clock: rotation at its own timer, frequencies and end of throttling at the tick.

kernel/events/core.c.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.linux.native import cost, retire_work
from vpmu_emu.linux.percpu import this_core, this_cpu
from vpmu_emu.linux.perf.clocks import pmu_of
from vpmu_emu.linux.perf.overflow import perf_adjust_period
from vpmu_emu.linux.perf.sched import perf_rotate_context
from vpmu_emu.linux.perf.throttle import perf_event_unthrottle_group, throttles_groups, tick_at
from vpmu_emu.linux.perf.times import ctx_cpu, sched_clock
from vpmu_emu.linux.perf.x86 import (
    THROTTLED,
    perf_pmu_disable,
    perf_pmu_enable,
    x86_pmu_start,
    x86_pmu_stop,
)
from vpmu_emu.linux.state import PERF_EVENT_STATE_ACTIVE, PMU_CORE
from vpmu_emu.machine.state import NEVER
from vpmu_emu.machine.u64 import U64

COST_ADJUST = cost("perf_adjust_freq_unthr_context")


@jit()
def perf_mux_hrtimer_handler(S, E):
    """The multiplexing timer: rotate, and come again as long as somebody waits."""
    host = this_cpu(S)
    host.mux_at = NEVER
    if perf_rotate_context(S, E) != 0:
        host.mux_at = this_core(S).t + S.config.mux_interval


@jit()
def perf_adjust_freq_unthr_context(S, E, i):
    """At a tick: a throttled event runs again, one with a frequency gets the period that it needs."""
    event = S.perf_events[i]
    retire_work(S, E, COST_ADJUST)
    core = pmu_of(event.pmu_type) == PMU_CORE
    if event.interrupts == THROTTLED:
        perf_event_unthrottle_group(S, E, i, 1 if event.sample_freq == 0 else 0)
    if event.sample_freq == 0:
        return
    if core:
        x86_pmu_stop(S, E, i, 1)
    delta = np.int64(event.count - event.freq_count)  # negative after PERF_EVENT_IOC_RESET
    event.freq_count = event.count
    if delta > 0:
        perf_adjust_period(S, E, i, sched_clock(S, S.config.tick_interval), U64(delta), 0)
    if core:
        x86_pmu_start(S, E, i, 1 if delta > 0 else 0)


@jit()
def perf_event_task_tick(S, E):
    """The tick of this CPU: the end of throttling, and the periods of events with a frequency."""
    host = this_cpu(S)
    host.tick_at = NEVER
    disabled = False
    for i in range(S.perf_rows):
        event = S.perf_events[i]
        if event.used == 0 or event.state != PERF_EVENT_STATE_ACTIVE:
            continue
        if event.sample_freq == 0 and event.interrupts != THROTTLED:
            continue
        if event.leader != i and throttles_groups(S):
            continue  # since 6.9 only leaders are looked at
        if ctx_cpu(S, event.ctx) != S.this_cpu:
            continue
        if not disabled:
            disabled = True
            perf_pmu_disable(S, E)
        perf_adjust_freq_unthr_context(S, E, i)
        if event.sample_freq != 0:
            host.tick_at = tick_at(S)
    if disabled:
        perf_pmu_enable(S, E)
