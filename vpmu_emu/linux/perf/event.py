"""What the kernel offers to owners of events: create, release, enable, disable, pause, period, read.

kernel/events/core.c. Creation fails with a negative errno, as in the kernel.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.linux.hrtimer import host_timer_program
from vpmu_emu.linux.perf.sched import ctx_resched, group_sched_out
from vpmu_emu.linux.perf.x86 import (
    EINVAL,
    MAX_PERIOD,
    THROTTLED,
    perf_event_set_state,
    perf_event_update_time,
    perf_pmu_disable,
    perf_pmu_enable,
    x86_get_event_constraints,
    x86_perf_event_update,
    x86_pmu_start,
    x86_pmu_stop,
)
from vpmu_emu.linux.state import (
    ERR_NONE,
    N_EVENTS,
    OWNER_KVM,
    PERF_EVENT_STATE_ACTIVE,
    PERF_EVENT_STATE_ERROR,
    PERF_EVENT_STATE_INACTIVE,
    PERF_EVENT_STATE_OFF,
    PERF_TYPE_RAW,
)
from vpmu_emu.linux.trace_kinds import TR_PERF_CREATE, TR_PERF_RELEASE
from vpmu_emu.machine.ring import emit
from vpmu_emu.machine.u64 import TOP, U64, ZERO

# attr flags of perf_event_create_kernel_counter()
ATTR_PINNED = 1
ATTR_EXCLUDE_USER = 2
ATTR_EXCLUDE_KERNEL = 4
ATTR_EXCLUDE_HOST = 8
ATTR_EXCLUDE_GUEST = 16
EBUSY = -16
ENOMEM = -12


@jit()
def perf_event_alloc_errno(S, flags):
    """Patch 02: an event that includes the guest cannot be made while a guest owns the PMU."""
    if S.percpu[S.this_cpu].force_exclude_guest != 0 and flags & ATTR_EXCLUDE_GUEST == 0:
        return EBUSY
    return 0


@jit()
def perf_event_create_kernel_counter(S, E, ctx, flags, config, period, owner, pmc):
    """Make an event and schedule it; returns its row, or a negative errno.

    `flags` are ATTR_*, `config` selector bits, `period` a sample period or 0.
    """
    S.percpu[S.this_cpu]
    errno = perf_event_alloc_errno(S, flags)
    if errno != 0:
        return errno
    if x86_get_event_constraints(S.cores[S.this_cpu], config) == ZERO:
        return EINVAL  # validate_event(): no counter of this CPU can count it
    i = 0
    while i < N_EVENTS and S.perf_events[i].used != 0:
        i += 1
    if i == N_EVENTS:
        return ENOMEM
    event = S.perf_events[i]
    event.used = 1
    event.state = PERF_EVENT_STATE_INACTIVE
    event.pmu_type = PERF_TYPE_RAW
    event.ctx = ctx
    event.cpu = -1
    event.vcpu = S.this_vcpu if owner == OWNER_KVM else -1
    event.parent = -1
    event.owner = owner
    event.pmc = pmc
    event.spec = -1
    event.leader = i
    event.order = S.list_end
    S.list_end += 1
    S.perf_rows = max(S.perf_rows, i + 1)
    event.config = config
    event.pinned = 1 if flags & ATTR_PINNED != 0 else 0
    event.exclude_user = 1 if flags & ATTR_EXCLUDE_USER != 0 else 0
    event.exclude_kernel = 1 if flags & ATTR_EXCLUDE_KERNEL != 0 else 0
    event.exclude_host = 1 if flags & ATTR_EXCLUDE_HOST != 0 else 0
    event.exclude_guest = 1 if flags & ATTR_EXCLUDE_GUEST != 0 else 0
    event.exclude_idle = 1 if owner == OWNER_KVM else 0
    event.inherit = 0
    event.precise_ip = 0
    event.sample_freq = 0
    event.sample_type = ZERO
    event.read_format = ZERO
    event.watchdog = 0
    event.sample_period = period
    event.period = period if period != ZERO else U64(MAX_PERIOD)
    event.period_left = np.int64(event.period)
    event.count = ZERO
    event.tstamp = S.cores[S.this_cpu].t
    event.total_time_enabled = 0
    event.total_time_running = 0
    event.error_cause = ERR_NONE
    event.error_time = 0
    event.samples = ZERO
    event.child_count = ZERO
    event.child_enabled = 0
    event.child_running = 0
    event.buffer = 0
    event.buffer_pages = 0
    event.head = ZERO
    event.lost = ZERO
    event.freq_time = S.cores[S.this_cpu].t
    event.freq_count = ZERO
    event.idx = -1
    event.stopped = 1
    event.arch_stopped = 0
    event.prev_count = ZERO
    event.interrupts = 0
    event.interrupts_seq = 0
    emit(E, S.cores[S.this_cpu].t, TR_PERF_CREATE, ZERO, U64(i), config, period)
    ctx_resched(S, E, ctx, event.pinned)
    return i


@jit()
def perf_event_release_kernel(S, E, i):
    """Remove event i; its counter stays free until the next time that its context is scheduled."""
    host = S.percpu[S.this_cpu]
    perf_pmu_disable(S, E)
    group_sched_out(S, E, i)
    perf_pmu_enable(S, E)
    emit(E, S.cores[S.this_cpu].t, TR_PERF_RELEASE, ZERO, U64(i), ZERO, ZERO)
    for k in range(host.last_event.shape[0]):
        if host.last_event[k] == i:
            host.last_event[k] = -1
    S.perf_events[i].used = 0
    while S.perf_rows > 0 and S.perf_events[S.perf_rows - 1].used == 0:
        S.perf_rows -= 1


@jit()
def perf_event_enable(S, E, i):
    """Let event i be scheduled; an event in ERROR gets another chance."""
    event = S.perf_events[i]
    if event.state >= PERF_EVENT_STATE_INACTIVE:
        return
    if event.state == PERF_EVENT_STATE_ERROR:
        perf_event_set_state(S, E, i, PERF_EVENT_STATE_OFF)
    perf_event_set_state(S, E, i, PERF_EVENT_STATE_INACTIVE)
    ctx_resched(S, E, event.ctx, event.pinned)


@jit()
def perf_event_disable(S, E, i):
    """Stop event i and keep it; one in ERROR stays in ERROR."""
    if S.perf_events[i].state < PERF_EVENT_STATE_INACTIVE:
        return
    perf_pmu_disable(S, E)
    group_sched_out(S, E, i)
    perf_event_set_state(S, E, i, PERF_EVENT_STATE_OFF)
    perf_pmu_enable(S, E)


@jit()
def perf_event_pause(S, E, i, reset):
    """Disable event i and return its count; `reset` 1 starts it again from 0."""
    perf_event_disable(S, E, i)
    event = S.perf_events[i]
    count = event.count
    if reset != 0:
        event.count = ZERO
    return count


@jit()
def perf_event_period(S, E, i, value):
    """Give a sampling event a new period, from now on; 0 or a negative errno."""
    event = S.perf_events[i]
    if event.sample_period == ZERO or value == ZERO or value & TOP != ZERO:
        return EINVAL
    event.sample_period = value
    event.period = value
    active = event.state == PERF_EVENT_STATE_ACTIVE
    if active:
        perf_pmu_disable(S, E)
        if event.interrupts == THROTTLED:
            event.interrupts = 0
        x86_pmu_stop(S, E, i, 1)
    event.period_left = 0
    if active:
        x86_pmu_start(S, E, i, 1)
        perf_pmu_enable(S, E)
    return 0


@jit()
def perf_event_read_value(S, E, i):
    """The event's count, brought up to date if it is on the hardware."""
    event = S.perf_events[i]
    perf_event_update_time(S, i)
    if event.state == PERF_EVENT_STATE_ACTIVE and event.stopped == 0:
        x86_perf_event_update(S, E, i)
    return event.count


@jit()
def perf_init(S, E):
    """Schedule the events of this CPU that exist before the run starts, and arm its timer, once."""
    host = S.percpu[S.this_cpu]
    if host.booted != 0:
        return
    host.booted = 1
    if S.perf_rows > 0:
        ctx_resched(S, E, S.this_cpu, 1)
    host_timer_program(S, E)
