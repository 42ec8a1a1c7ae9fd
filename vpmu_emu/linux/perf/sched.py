"""Which events hold counters: CPU-pinned, task-pinned, CPU-flexible, task-flexible, in this order.

A pinned event that does not fit goes to ERROR, a flexible one waits for the rotation.
kernel/events/core.c.
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.linux.hrtimer import host_timer_program
from vpmu_emu.linux.native import cost, retire_work
from vpmu_emu.linux.percpu import this_core, this_cpu
from vpmu_emu.linux.perf.clocks import (
    PERF_COUNT_SW_CONTEXT_SWITCHES,
    PERF_COUNT_SW_CPU_MIGRATIONS,
    clock_program,
    event_update,
    free_running,
    is_clock,
    pmu_of,
)
from vpmu_emu.linux.perf.lbr import intel_pmu_lbr_sched_task
from vpmu_emu.linux.perf.overflow import is_sampling_event
from vpmu_emu.linux.perf.swevent import perf_sw_event
from vpmu_emu.linux.perf.throttle import perf_event_unthrottle, tick_at
from vpmu_emu.linux.perf.times import perf_event_set_state, perf_event_update_time
from vpmu_emu.linux.perf.x86 import (
    THROTTLED,
    perf_pmu_disable,
    perf_pmu_enable,
    x86_pmu_add,
    x86_pmu_del,
)
from vpmu_emu.linux.state import (
    CTX_NONE,
    CTX_TASK,
    ERR_NO_COUNTER,
    PERF_EVENT_STATE_ACTIVE,
    PERF_EVENT_STATE_ERROR,
    PERF_EVENT_STATE_INACTIVE,
    PERF_EVENT_STATE_OFF,
    PMU_CORE,
)
from vpmu_emu.linux.trace_kinds import TR_ROTATE
from vpmu_emu.machine.ring import emit
from vpmu_emu.machine.state import NEVER
from vpmu_emu.machine.u64 import ONE, ZERO

# lists of groups on a CPU, first come first served
CPU_PINNED = 1
TASK_PINNED = 2
CPU_FLEXIBLE = 4
TASK_FLEXIBLE = 8
ALL_CLASSES = 15

COST_SCHED_IN = cost("event_sched_in")
COST_SCHED_OUT = cost("event_sched_out")
COST_ROTATE = cost("perf_mux_hrtimer_handler")


@jit()
def next_group(S, ctx, pinned, after):
    """The group leader of a context's list that follows position `after`, -1 at the end."""
    found = -1
    for i in range(S.perf_rows):
        event = S.perf_events[i]
        if event.used == 0 or event.leader != i or event.ctx != ctx or event.pinned != pinned:
            continue
        if event.order > after and (found < 0 or event.order < S.perf_events[found].order):
            found = i
    return found


@jit()
def event_sched_out(S, E, i):
    """Take one event off the hardware: ACTIVE becomes INACTIVE, or OFF if it has reached its limit."""
    event = S.perf_events[i]
    if event.state != PERF_EVENT_STATE_ACTIVE:
        return
    state = PERF_EVENT_STATE_INACTIVE
    if event.event_limit < 0:  # pending_disable: its task may leave before perf_pending_disable() comes
        event.event_limit = 0
        state = PERF_EVENT_STATE_OFF
    if pmu_of(event.pmu_type) != PMU_CORE:
        event_update(S, E, i)
        perf_event_set_state(S, E, i, state)
        return
    perf_pmu_disable(S, E)
    retire_work(S, E, COST_SCHED_OUT)
    x86_pmu_del(S, E, i)
    host = this_cpu(S)
    if event.exclusive != 0 or host.n_events == 0:
        host.exclusive = 0
    perf_event_set_state(S, E, i, state)
    perf_pmu_enable(S, E)


@jit()
def group_sched_out(S, E, leader):
    """Take a whole group off the hardware."""
    for i in range(S.perf_rows):
        if S.perf_events[i].used != 0 and S.perf_events[i].leader == leader:
            event_sched_out(S, E, i)


@jit()
def event_filter_match(S, event):
    """Whether an event that is bound to a CPU may count on this one."""
    return event.cpu < 0 or event.cpu == S.this_cpu


@jit()
def event_sched_in(S, E, i):
    """Put one event on the hardware, if it wants to count: 0, or -EINVAL."""
    host = this_cpu(S)
    event = S.perf_events[i]
    if event.state != PERF_EVENT_STATE_INACTIVE:
        return 0
    if pmu_of(event.pmu_type) != PMU_CORE:
        event.prev_count = free_running(S, i)
        if is_clock(event) and is_sampling_event(event):
            clock_program(S, i)
            host_timer_program(S, E)
    else:
        retire_work(S, E, COST_SCHED_IN)
        failed = x86_pmu_add(S, E, i)
        if failed != 0:
            return failed
        if event.exclusive != 0:
            host.exclusive = 1
    if event.sample_freq != 0 and host.tick_at == NEVER:  # its period is adjusted there
        host.tick_at = tick_at(S)
        host_timer_program(S, E)
    perf_event_set_state(S, E, i, PERF_EVENT_STATE_ACTIVE)
    if event.interrupts == THROTTLED:  # ticks may have passed while it was off
        perf_event_unthrottle(S, E, i, 0)
    return 0


@jit()
def group_sched_in(S, E, leader):
    """Put a group on the hardware, the leader first, all of it or nothing: 0, or -EINVAL."""
    failed = event_sched_in(S, E, leader)
    for i in range(S.perf_rows):
        event = S.perf_events[i]
        if failed == 0 and event.used != 0 and event.leader == leader and i != leader:
            failed = event_sched_in(S, E, i)
    if failed != 0:
        group_sched_out(S, E, leader)
    return failed


@jit()
def ctx_sched_out(S, E, ctx, pinned, every):
    """Take the pinned (1) or the flexible (0) events of a context off the core PMU; `every` 1: off all."""
    if ctx < 0:
        return
    if pinned == 0:
        S.contexts[ctx].rotate_necessary = 0
    after = -1
    while True:
        i = next_group(S, ctx, pinned, after)
        if i < 0:
            return
        after = S.perf_events[i].order
        if every != 0 or S.perf_events[i].pmu_ctx == PMU_CORE:
            group_sched_out(S, E, i)


@jit()
def group_can_go_on(S, leader, can_add_hw):
    """Whether a group of the core PMU may try: exclusive ones bear none beside them, nor behind others."""
    event = S.perf_events[leader]
    if this_cpu(S).exclusive != 0:
        return False
    if event.exclusive != 0:
        for i in range(S.perf_rows):
            other = S.perf_events[i]
            if other.used == 0 or other.leader != i or other.state != PERF_EVENT_STATE_ACTIVE:
                continue
            if other.ctx == event.ctx and other.pinned == event.pinned and other.pmu_ctx == PMU_CORE:
                return False
    return can_add_hw != 0


@jit()
def ctx_sched_in(S, E, ctx, pinned):
    """Schedule the pinned or the flexible events of a context, first come first served (merge_sched_in)."""
    host = this_cpu(S)
    if ctx < 0:
        return
    can_add_hw = 1
    after = -1
    while True:
        i = next_group(S, ctx, pinned, after)
        if i < 0:
            return
        event = S.perf_events[i]
        after = event.order
        if event.state != PERF_EVENT_STATE_INACTIVE or not event_filter_match(S, event):
            continue
        if event.pmu_ctx != PMU_CORE:  # a PMU of its own, and room for all
            group_sched_in(S, E, i)
            continue
        # While a guest owns the PMU nothing may come in (patch 02, EVENT_GUEST).
        if host.force_exclude_guest != 0 or host.guest_ctx_loaded != 0:
            continue
        if group_can_go_on(S, i, can_add_hw):
            group_sched_in(S, E, i)
        if event.state == PERF_EVENT_STATE_INACTIVE:
            can_add_hw = 0  # for the rest of this list
            if pinned != 0:
                event.error_cause = ERR_NO_COUNTER
                event.error_time = this_core(S).t
                perf_event_set_state(S, E, i, PERF_EVENT_STATE_ERROR)
            else:
                S.contexts[ctx].rotate_necessary = 1
                if host.mux_at == NEVER:  # perf_mux_hrtimer_restart()
                    host.mux_at = this_core(S).t + S.config.mux_interval
                    host_timer_program(S, E)


@jit()
def perf_event_sched_in(S, E, classes):
    """Those lists of both contexts that were taken out, in order of priority.

    In the other ones (ctx->is_active) who waits goes on waiting for the rotation, whatever has become free.
    """
    cpu_ctx = S.this_cpu
    task_ctx = this_cpu(S).task_ctx
    if classes & CPU_PINNED != 0:
        ctx_sched_in(S, E, cpu_ctx, 1)
    if classes & TASK_PINNED != 0:
        ctx_sched_in(S, E, task_ctx, 1)
    if classes & CPU_FLEXIBLE != 0:
        ctx_sched_in(S, E, cpu_ctx, 0)
    if classes & TASK_FLEXIBLE != 0:
        ctx_sched_in(S, E, task_ctx, 0)


@jit()
def ctx_resched(S, E, ctx, pinned):
    """Reschedule after an event of this context and class became runnable."""
    cpu_ctx = S.this_cpu
    task_ctx = this_cpu(S).task_ctx
    perf_pmu_disable(S, E)
    classes = TASK_FLEXIBLE
    if pinned != 0:
        ctx_sched_out(S, E, task_ctx, 1, 0)
        classes |= TASK_PINNED
    ctx_sched_out(S, E, task_ctx, 0, 0)
    if ctx < CTX_TASK and pinned != 0:
        ctx_sched_out(S, E, cpu_ctx, 1, 0)
        classes |= CPU_PINNED
    if ctx < CTX_TASK or pinned != 0:
        ctx_sched_out(S, E, cpu_ctx, 0, 0)
        classes |= CPU_FLEXIBLE
    perf_event_sched_in(S, E, classes)
    perf_pmu_enable(S, E)


@jit()
def _ctx_update_times(S, ctx):
    for i in range(S.perf_rows):
        if S.perf_events[i].used != 0 and S.perf_events[i].ctx == ctx:
            perf_event_update_time(S, i)


@jit()
def _ctx_has(S, ctx, pinned):
    # Whether a context has events, with `pinned` 1 pinned ones.
    return next_group(S, ctx, 1, -1) >= 0 or (pinned == 0 and next_group(S, ctx, 0, -1) >= 0)


@jit()
def perf_event_task_sched(S, E, ctx):
    """The context of another task comes to this CPU, CTX_NONE for the idle task; the present one leaves.

    Counts the context switch for the one, and for the other that it has come from another CPU.
    """
    host = this_cpu(S)
    perf_sw_event(S, E, PERF_COUNT_SW_CONTEXT_SWITCHES, ONE)
    leaves = host.task_ctx
    if leaves >= 0 and _ctx_has(S, leaves, 0):
        perf_pmu_disable(S, E)
        if host.lbr_users > 0:
            intel_pmu_lbr_sched_task(S, E, leaves, 0)
        ctx_sched_out(S, E, leaves, 1, 1)
        ctx_sched_out(S, E, leaves, 0, 1)
        _ctx_update_times(S, leaves)  # its time stops
        host.task_ctx = CTX_NONE
        perf_pmu_enable(S, E)
    host.task_ctx = CTX_NONE
    if ctx < 0:
        return
    _ctx_update_times(S, ctx)  # from now on its time counts
    host.task_ctx = ctx
    if _ctx_has(S, ctx, 0):
        perf_pmu_disable(S, E)
        classes = TASK_PINNED | TASK_FLEXIBLE
        if _ctx_has(S, ctx, 1):  # CPU-flexible events give way to the task's pinned ones
            ctx_sched_out(S, E, S.this_cpu, 0, 0)
            classes |= CPU_FLEXIBLE
        perf_event_sched_in(S, E, classes)
        if host.lbr_users > 0:
            intel_pmu_lbr_sched_task(S, E, ctx, 1)
        perf_pmu_enable(S, E)
    moved = S.contexts[ctx].last_cpu != 0 and S.contexts[ctx].last_cpu != S.this_cpu + 1
    S.contexts[ctx].last_cpu = S.this_cpu + 1
    if moved:
        perf_sw_event(S, E, PERF_COUNT_SW_CPU_MIGRATIONS, ONE)


@jit()
def _event_to_rotate(S, ctx):
    # ctx_event_to_rotate(): the first that is on the hardware, else the first of those bound to no CPU,
    # else of those bound to this one
    S.contexts[ctx].rotate_necessary = 0
    first = -1
    i = next_group(S, ctx, 0, -1)
    while i >= 0:
        event = S.perf_events[i]
        if event.pmu_ctx == PMU_CORE and event_filter_match(S, event):
            if event.state == PERF_EVENT_STATE_ACTIVE:
                return i
            if first < 0 or (event.cpu < 0 and S.perf_events[first].cpu >= 0):
                first = i
        i = next_group(S, ctx, 0, event.order)
    return first


@jit()
def perf_rotate_context(S, E):
    """perf_mux_hrtimer_handler(): the event that has waited longest gets its turn; 0 if nobody waits."""
    host = this_cpu(S)
    cpu_ctx = S.this_cpu
    task_ctx = host.task_ctx
    cpu_rotate = S.contexts[cpu_ctx].rotate_necessary
    task_rotate = S.contexts[task_ctx].rotate_necessary if task_ctx >= 0 else 0
    if cpu_rotate == 0 and task_rotate == 0:
        return 0
    emit(E, this_core(S).t, TR_ROTATE, ZERO, ZERO, ZERO, ZERO)
    host.rotations += ONE
    perf_pmu_disable(S, E)
    retire_work(S, E, COST_ROTATE)
    task_event = -1
    cpu_event = -1
    if task_rotate != 0:
        task_event = _event_to_rotate(S, task_ctx)
    if cpu_rotate != 0:
        cpu_event = _event_to_rotate(S, cpu_ctx)
    if task_event >= 0 or cpu_event >= 0:
        ctx_sched_out(S, E, task_ctx, 0, 0)
    if cpu_event >= 0:
        ctx_sched_out(S, E, cpu_ctx, 0, 0)
        S.perf_events[cpu_event].order = S.list_end
        S.list_end += 1
        ctx_sched_in(S, E, cpu_ctx, 0)
    if task_event >= 0:
        S.perf_events[task_event].order = S.list_end
        S.list_end += 1
    if task_event >= 0 or cpu_event >= 0:
        ctx_sched_in(S, E, task_ctx, 0)
    perf_pmu_enable(S, E)
    return 1
