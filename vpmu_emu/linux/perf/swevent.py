"""Software events: the kernel says that something happened, and the events of the right CPU count it.

perf_swevent_event() and perf_swevent_hrtimer() of kernel/events/core.c.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.linux.percpu import this_core, this_cpu
from vpmu_emu.linux.perf.clocks import clock_program, event_update, is_clock
from vpmu_emu.linux.perf.output import SAMPLE_PERIOD
from vpmu_emu.linux.perf.overflow import is_sampling_event, perf_event_overflow
from vpmu_emu.linux.perf.times import ctx_cpu
from vpmu_emu.linux.perf.x86 import THROTTLED
from vpmu_emu.linux.state import FROM_KERNEL, FROM_USER, PERF_EVENT_STATE_ACTIVE, PERF_TYPE_SOFTWARE
from vpmu_emu.machine.state import NEVER
from vpmu_emu.machine.u64 import ZERO


@jit()
def perf_exclude_event(S, event):
    """Whether attr.exclude_* refuse what the interrupt at hand came upon."""
    came = this_cpu(S).interrupted
    return (came == FROM_USER and event.exclude_user != 0) or (
        came == FROM_KERNEL and event.exclude_kernel != 0
    )


@jit()
def perf_sw_event(S, E, config, nr):
    """`nr` times the thing `config` (PERF_COUNT_SW_*, uint64) has happened on this CPU.

    Whether in user or kernel mode says `percpu.interrupted`.
    """
    this_cpu(S).interrupted_row = this_cpu(S).row
    for i in range(S.perf_rows):
        event = S.perf_events[i]
        if event.used == 0 or event.pmu_type != PERF_TYPE_SOFTWARE or event.config != config:
            continue
        if event.state != PERF_EVENT_STATE_ACTIVE or ctx_cpu(S, event.ctx) != S.this_cpu:
            continue
        if perf_exclude_event(S, event):
            continue
        event.count += nr
        if not is_sampling_event(event):
            continue
        if event.sample_type & SAMPLE_PERIOD != ZERO and event.sample_freq == 0:
            event.last_period = nr  # every one is a sample, and tells how much it stands for
            perf_event_overflow(S, E, i, 0)
            continue
        event.period_left -= np.int64(nr)
        while event.period_left <= 0:
            event.period_left += np.int64(event.period)
            event.last_period = event.period
            perf_event_overflow(S, E, i, 0)


@jit()
def perf_swevent_hrtimer(S, E):
    """Samples of the clocks that are due on this CPU; the timer goes on to the next."""
    host = this_cpu(S)
    now = this_core(S).t
    host.clock_at = NEVER
    for i in range(S.perf_rows):
        event = S.perf_events[i]
        if event.used == 0 or event.state != PERF_EVENT_STATE_ACTIVE or not is_clock(event):
            continue
        if not is_sampling_event(event) or ctx_cpu(S, event.ctx) != S.this_cpu:
            continue
        if event.interrupts == THROTTLED:
            continue
        if event.freq_time > now:
            host.clock_at = min(host.clock_at, event.freq_time)
            continue
        event_update(S, E, i)
        event.last_period = event.period
        idle = event.exclude_idle != 0 and host.curr < 0
        if not perf_exclude_event(S, event) and not idle and perf_event_overflow(S, E, i, 1) != 0:
            continue  # HRTIMER_NORESTART: the tick starts it again
        clock_program(S, i)
