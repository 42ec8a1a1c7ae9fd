"""Every change of an event's state goes through here, so that its times and the log of errors are exact.

kernel/events/core.c, arch/x86/kernel/tsc.c.
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.linux.percpu import this_core, this_cpu
from vpmu_emu.linux.state import (
    CTX_TASK,
    N_CORES,
    N_ERRORS,
    PERF_EVENT_STATE_ACTIVE,
    PERF_EVENT_STATE_ERROR,
    PERF_EVENT_STATE_INACTIVE,
    PERF_EVENT_STATE_OFF,
)
from vpmu_emu.linux.trace_kinds import TR_PERF_STATE
from vpmu_emu.machine.clock import tsc_at
from vpmu_emu.machine.ring import emit
from vpmu_emu.machine.u64 import LOW32, ONE, U31, U32, U64, ZERO

# attr bits of a kernel counter and of the log
ATTR_PINNED = 1
ATTR_EXCLUDE_USER = 2
ATTR_EXCLUDE_KERNEL = 4
ATTR_EXCLUDE_HOST = 8
ATTR_EXCLUDE_GUEST = 16
ATTR_BRANCH_STACK = 32  # sample_type with PERF_SAMPLE_BRANCH_STACK
ATTR_PRECISE_SHIFT = 6  # precise_ip, 0 to 3


@jit()
def sched_clock(S, t):
    """Nanoseconds (uint64) of a time (int64, 1/16 cycle) as the kernel makes them of the TSC."""
    tsc = tsc_at(this_core(S), t)
    mul = S.config.cyc2ns_mul
    return ((tsc & LOW32) * mul >> U31) + ((tsc >> U32) * mul << ONE)


@jit()
def ctx_cpu(S, ctx):
    """The CPU on which time passes for a context: a task's only while it runs, -1 nowhere."""
    if ctx < CTX_TASK:
        return ctx
    for cpu in range(N_CORES):
        if S.percpu[cpu].task_ctx == ctx:
            return cpu
    return -1


@jit()
def next_member(S, leader, after):
    """Who joined a group next after the event with id `after` (uint64); -1 at the end."""
    found = -1
    for k in range(S.perf_rows):
        member = S.perf_events[k]
        if member.used == 0 or member.leader != leader or k == leader or member.id <= after:
            continue
        if found < 0 or member.id < S.perf_events[found].id:
            found = k
    return found


@jit()
def perf_event_update_time(S, i):
    """Bring total_time_enabled and total_time_running up to now. Modifies the event.

    Those of an event that runs elsewhere wait for its own CPU: clocks differ.
    """
    event = S.perf_events[i]
    now = this_core(S).t
    cpu = ctx_cpu(S, event.ctx)
    # T_GUEST: the clock of an event that excludes guests stands still while one has the PMU.
    if cpu == S.this_cpu and (event.exclude_guest == 0 or this_cpu(S).guest_ctx_loaded == 0):
        # __perf_effective_state(): a member of a group that is off does not want to count either
        state = event.state
        leads = S.perf_events[event.leader].state
        if leads <= PERF_EVENT_STATE_OFF:
            state = leads
        if state >= PERF_EVENT_STATE_INACTIVE:
            event.total_time_enabled += now - event.tstamp
        if state >= PERF_EVENT_STATE_ACTIVE:
            event.total_time_running += now - event.tstamp
    if cpu == S.this_cpu or cpu < 0:
        event.tstamp = now


@jit()
def _log_error(S, i):
    event = S.perf_events[i]
    if event.error_log > S.perf_error_n - N_ERRORS and event.error_log > 0:
        last = S.perf_errors[(event.error_log - 1) % N_ERRORS]
        if last.revived == 0:
            last.retries += 1
            return
    log = S.perf_errors[S.perf_error_n % N_ERRORS]
    S.perf_error_n += 1
    event.error_log = S.perf_error_n
    log.id = event.id
    log.config = event.config
    log.attr = ATTR_PINNED | (
        event.exclude_user * ATTR_EXCLUDE_USER
        | event.exclude_kernel * ATTR_EXCLUDE_KERNEL
        | event.exclude_host * ATTR_EXCLUDE_HOST
        | event.exclude_guest * ATTR_EXCLUDE_GUEST
    )
    log.owner = event.owner
    log.ctx = event.ctx
    log.pmc = event.pmc
    log.vcpu = event.vcpu
    log.cause = event.error_cause
    log.time = event.error_time
    log.retries = 0
    log.revived = 0
    log.released = 0


@jit()
def error_over(S, i, released):
    """An event that has been in ERROR is on a counter again (0), or is removed (1)."""
    event = S.perf_events[i]
    if event.error_log > S.perf_error_n - N_ERRORS and event.error_log > 0:
        log = S.perf_errors[(event.error_log - 1) % N_ERRORS]
        if released != 0:
            log.released = this_core(S).t
        elif log.revived == 0:
            log.revived = this_core(S).t


@jit()
def perf_event_set_state(S, E, i, state):
    """Change the state of event i; its times follow, and those of the group that it leads."""
    event = S.perf_events[i]
    if event.state == state:
        return
    perf_event_update_time(S, i)
    if event.leader == i and (event.state < 0) != (state < 0):
        for k in range(S.perf_rows):
            if S.perf_events[k].used != 0 and S.perf_events[k].leader == i and k != i:
                perf_event_update_time(S, k)
    emit(E, this_core(S).t, TR_PERF_STATE, ZERO, event.id, U64(event.state + 2), U64(state + 2))
    event.state = state
    if state == PERF_EVENT_STATE_ERROR:
        _log_error(S, i)
    elif state == PERF_EVENT_STATE_ACTIVE:
        error_over(S, i, 0)
