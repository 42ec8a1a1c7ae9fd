"""Samples must not take the host's time away: an event that fires too often rests until the next tick.

kernel/events/core.c. How often is too often, kernel.perf_event_max_sample_rate says; what the interrupts
take on average lowers it.
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.linux.hrtimer import host_timer_program
from vpmu_emu.linux.percpu import this_core, this_cpu
from vpmu_emu.linux.perf.clocks import clock_program, is_clock, pmu_of
from vpmu_emu.linux.perf.output import perf_log_throttle
from vpmu_emu.linux.perf.x86 import (
    THROTTLED,
    perf_pmu_disable,
    perf_pmu_enable,
    x86_pmu_start,
    x86_pmu_stop,
)
from vpmu_emu.linux.state import PERF_EVENT_STATE_ACTIVE, PMU_CORE
from vpmu_emu.machine.u64 import ONE
from vpmu_emu.tables.modes import kernel_version

V6_16 = kernel_version(6, 16)
NR_ACCUMULATED_SAMPLES = 128


@jit()
def tick_at(S):
    """The next tick of this core: int64."""
    return (this_core(S).t // S.config.tick_interval + 1) * S.config.tick_interval


@jit()
def throttles_groups(S):
    """Whether this kernel lets whole groups rest (since 6.16), or the one event that was too fast."""
    return S.config.kernel >= V6_16


@jit()
def perf_event_throttle(S, E, i):
    """Stop one event; a clock just gets no timer. The leader of a group that rests tells the ring."""
    event = S.perf_events[i]
    if event.state != PERF_EVENT_STATE_ACTIVE:
        return
    event.interrupts = THROTTLED
    event.throttles += ONE
    if pmu_of(event.pmu_type) == PMU_CORE:
        x86_pmu_stop(S, E, i, 1)
    if event.leader == i or not throttles_groups(S):
        perf_log_throttle(S, E, i, 0)


@jit()
def perf_event_unthrottle(S, E, i, start):
    """Let one event fire again; `start` 0: somebody else starts it."""
    event = S.perf_events[i]
    if event.state != PERF_EVENT_STATE_ACTIVE:
        return
    event.interrupts = 0
    if start != 0:
        if pmu_of(event.pmu_type) == PMU_CORE:
            # with its period: a member may have overflowed together with the one that was too fast
            x86_pmu_start(S, E, i, 1)
        elif is_clock(event):
            clock_program(S, i)
    if event.leader == i or not throttles_groups(S):
        perf_log_throttle(S, E, i, 1)


@jit()
def perf_event_throttle_group(S, E, i):
    """Too many samples of event i: its whole group rests, or its counts would not belong together.

    Before 6.16 event i alone did.
    """
    host = this_cpu(S)
    host.throttles += ONE
    host.tick_at = min(host.tick_at, tick_at(S))
    leader = S.perf_events[i].leader
    if host.in_nmi == 0:  # a clock's timer; an NMI has stopped the PMU already
        perf_pmu_disable(S, E)
    for k in range(S.perf_rows):
        if S.perf_events[k].used == 0 or S.perf_events[k].leader != leader:
            continue
        if k == i or throttles_groups(S):
            perf_event_throttle(S, E, k)
    if host.in_nmi == 0:
        perf_pmu_enable(S, E)


@jit()
def perf_event_unthrottle_group(S, E, i, start):
    """The group of event i fires again; `start` 0: event i itself is started by the caller."""
    leader = S.perf_events[i].leader
    for k in range(S.perf_rows):
        if S.perf_events[k].used == 0 or S.perf_events[k].leader != leader:
            continue
        if k == i or throttles_groups(S):
            perf_event_unthrottle(S, E, k, 1 if k != i else start)
    host_timer_program(S, E)


@jit()
def perf_sample_event_took(S, length):
    """An interrupt of perf took `length` (1/16 cycle): if the average is too long, samples get rarer."""
    host = this_cpu(S)
    config = S.config
    if config.sample_allowed == 0:  # perf_cpu_time_max_percent is 0 or 100
        return
    host.running_sample_length += length - host.running_sample_length // NR_ACCUMULATED_SAMPLES
    average = host.running_sample_length // NR_ACCUMULATED_SAMPLES
    if average <= config.sample_allowed:
        return
    # The new limit lies a quarter above, so that it is not lowered by the next sample again.
    average += average // 4
    budget = config.tick_interval // 100 * config.cpu_time_max_percent
    config.max_samples_per_tick = budget // average if average < budget else 1
    config.sample_allowed = average
    config.max_sample_rate = config.max_samples_per_tick * config.hz
    host.too_long += ONE
