"""Which events hold counters: CPU-pinned, task-pinned, CPU-flexible, task-flexible, in this order.

A pinned event that does not fit goes to ERROR, a flexible one waits for the rotation.
kernel/events/core.c.
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.linux.native import cost, retire
from vpmu_emu.linux.perf.x86 import (
    THROTTLED,
    host_timer_program,
    perf_event_set_state,
    perf_event_update_time,
    perf_pmu_disable,
    perf_pmu_enable,
    x86_pmu_add,
    x86_pmu_del,
)
from vpmu_emu.linux.state import (
    CTX_CPU,
    CTX_TASK,
    ERR_NO_COUNTER,
    PERF_EVENT_STATE_ACTIVE,
    PERF_EVENT_STATE_ERROR,
    PERF_EVENT_STATE_INACTIVE,
)
from vpmu_emu.linux.trace_kinds import TR_ROTATE
from vpmu_emu.machine.ring import emit
from vpmu_emu.machine.state import NEVER
from vpmu_emu.machine.u64 import ONE, ZERO

COST_SCHED_IN = cost("event_sched_in")
COST_SCHED_OUT = cost("event_sched_out")
COST_ROTATE = cost("perf_mux_hrtimer_handler")


@jit()
def next_group(S, ctx, pinned, after):
    """The group leader of a context's list that follows position `after`, -1 at the end."""
    host = S.host
    found = -1
    for i in range(host.rows):
        event = host.perf_events[i]
        if event.used == 0 or event.leader != i or event.ctx != ctx or event.pinned != pinned:
            continue
        if event.order > after and (found < 0 or event.order < host.perf_events[found].order):
            found = i
    return found


@jit()
def event_sched_out(S, E, i):
    """Take one event off the hardware: ACTIVE becomes INACTIVE."""
    if S.host.perf_events[i].state != PERF_EVENT_STATE_ACTIVE:
        return
    perf_pmu_disable(S, E)
    retire(S, E, COST_SCHED_OUT)
    x86_pmu_del(S, E, i)
    perf_event_set_state(S, E, i, PERF_EVENT_STATE_INACTIVE)
    perf_pmu_enable(S, E)


@jit()
def group_sched_out(S, E, leader):
    """Take a whole group off the hardware."""
    host = S.host
    for i in range(host.rows):
        if host.perf_events[i].used != 0 and host.perf_events[i].leader == leader:
            event_sched_out(S, E, i)


@jit()
def group_sched_in(S, E, leader):
    """Put a group on the hardware, all of it or nothing: 0, or -EINVAL."""
    host = S.host
    failed = 0
    for i in range(host.rows):
        event = host.perf_events[i]
        if event.used == 0 or event.leader != leader or event.state != PERF_EVENT_STATE_INACTIVE:
            continue
        retire(S, E, COST_SCHED_IN)
        if event.interrupts == THROTTLED:  # ticks may have passed while it was off
            event.interrupts = 0
        failed = x86_pmu_add(S, i)
        if failed != 0:
            break
        perf_event_set_state(S, E, i, PERF_EVENT_STATE_ACTIVE)
    if failed != 0:
        group_sched_out(S, E, leader)
    return failed


@jit()
def ctx_sched_out(S, E, ctx, pinned):
    """Take the pinned (1) or the flexible (0) events of a context off the hardware."""
    if pinned == 0:
        S.host.rotate_necessary[ctx] = 0
    after = -1
    while True:
        i = next_group(S, ctx, pinned, after)
        if i < 0:
            return
        after = S.host.perf_events[i].order
        group_sched_out(S, E, i)


@jit()
def ctx_sched_in(S, E, ctx, pinned):
    """Schedule the pinned or the flexible events of a context, first come first served (merge_sched_in)."""
    host = S.host
    # While a guest owns the PMU nothing may come in (patch 02).
    if host.force_exclude_guest != 0 or (ctx == CTX_TASK and host.task_in == 0):
        return
    can_add_hw = 1
    after = -1
    while True:
        i = next_group(S, ctx, pinned, after)
        if i < 0:
            return
        event = host.perf_events[i]
        after = event.order
        if event.state != PERF_EVENT_STATE_INACTIVE:
            continue
        if can_add_hw != 0:
            group_sched_in(S, E, i)
        if event.state == PERF_EVENT_STATE_INACTIVE:
            can_add_hw = 0  # for the rest of this list
            if pinned != 0:
                event.error_cause = ERR_NO_COUNTER
                event.error_time = S.cores[0].t
                perf_event_set_state(S, E, i, PERF_EVENT_STATE_ERROR)
            else:
                host.rotate_necessary[ctx] = 1
                if host.mux_at == NEVER:  # perf_mux_hrtimer_restart()
                    host.mux_at = S.cores[0].t + S.config.mux_interval
                    host_timer_program(S, E)


@jit()
def perf_event_sched_in(S, E):
    """Both contexts, in order of priority; what is in stays in."""
    ctx_sched_in(S, E, CTX_CPU, 1)
    ctx_sched_in(S, E, CTX_TASK, 1)
    ctx_sched_in(S, E, CTX_CPU, 0)
    ctx_sched_in(S, E, CTX_TASK, 0)


@jit()
def ctx_resched(S, E, ctx, pinned):
    """Reschedule after an event of this context and class became runnable."""
    perf_pmu_disable(S, E)
    if pinned != 0:
        ctx_sched_out(S, E, CTX_TASK, 1)
    ctx_sched_out(S, E, CTX_TASK, 0)
    if ctx == CTX_CPU and pinned != 0:
        ctx_sched_out(S, E, CTX_CPU, 1)
    if ctx == CTX_CPU or pinned != 0:
        ctx_sched_out(S, E, CTX_CPU, 0)
    perf_event_sched_in(S, E)
    perf_pmu_enable(S, E)


@jit()
def perf_event_task_sched(S, E, inside):
    """The vCPU's thread leaves (0) or comes back to (1) the CPU: its context goes with it."""
    host = S.host
    perf_pmu_disable(S, E)
    if inside == 0:
        ctx_sched_out(S, E, CTX_TASK, 1)
        ctx_sched_out(S, E, CTX_TASK, 0)
    for i in range(host.rows):  # task time stops and starts with it
        if host.perf_events[i].used != 0 and host.perf_events[i].ctx == CTX_TASK:
            perf_event_update_time(S, i)
    host.task_in = inside
    if inside != 0:
        # CPU-flexible events give way to the task's pinned ones.
        ctx_sched_out(S, E, CTX_CPU, 0)
    perf_event_sched_in(S, E)
    perf_pmu_enable(S, E)


@jit()
def _event_to_rotate(S, ctx):
    # ctx_event_to_rotate(): the first that is on the hardware, else the first of all
    host = S.host
    host.rotate_necessary[ctx] = 0
    first = next_group(S, ctx, 0, -1)
    i = first
    while i >= 0:
        if host.perf_events[i].state == PERF_EVENT_STATE_ACTIVE:
            return i
        i = next_group(S, ctx, 0, host.perf_events[i].order)
    return first


@jit()
def perf_rotate_context(S, E):
    """perf_mux_hrtimer_handler(): the event that has waited longest gets its turn; 0 if nobody waits."""
    host = S.host
    cpu_rotate = host.rotate_necessary[CTX_CPU]
    task_rotate = host.rotate_necessary[CTX_TASK]
    if cpu_rotate == 0 and task_rotate == 0:
        return 0
    emit(E, S.cores[0].t, TR_ROTATE, ZERO, ZERO, ZERO, ZERO)
    host.rotations += ONE
    perf_pmu_disable(S, E)
    retire(S, E, COST_ROTATE)
    task_event = -1
    cpu_event = -1
    if task_rotate != 0:
        task_event = _event_to_rotate(S, CTX_TASK)
    if cpu_rotate != 0:
        cpu_event = _event_to_rotate(S, CTX_CPU)
    ctx_sched_out(S, E, CTX_TASK, 0)
    if cpu_event >= 0:
        ctx_sched_out(S, E, CTX_CPU, 0)
        host.perf_events[cpu_event].order = host.list_end
        host.list_end += 1
        ctx_sched_in(S, E, CTX_CPU, 0)
    if task_event >= 0:
        host.perf_events[task_event].order = host.list_end
        host.list_end += 1
    ctx_sched_in(S, E, CTX_TASK, 0)
    perf_pmu_enable(S, E)
    return 1
