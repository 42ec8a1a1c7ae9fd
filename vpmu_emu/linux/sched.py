"""Which task runs: the one of this CPU that has run least; who waits too long gets a tick.

A fair scheduler reduced to what matters here: virtual runtime, slices, wake-ups, affinity. With nohz_full
the tick runs while somebody needs it, else on every CPU that does not idle. kernel/sched/core.c, fair.c.
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.linux.irq_vectors import RESCHEDULE_VECTOR
from vpmu_emu.linux.percpu import this_core, this_cpu
from vpmu_emu.linux.state import N_TASKS, TASK_INTERRUPTIBLE, TASK_RUNNING
from vpmu_emu.machine.lapic import lapic_accept
from vpmu_emu.machine.state import NEVER
from vpmu_emu.machine.u64 import ONE, U64, ZERO


@jit(inline=True)
def may_run_on(task, cpu):
    """Whether its affinity allows core `cpu`."""
    return (task.allowed >> U64(cpu)) & ONE != ZERO


@jit()
def update_curr(S):
    """Book the time of the task that runs on this CPU."""
    host = this_cpu(S)
    if host.curr < 0:
        return
    task = S.tasks[host.curr]
    now = this_core(S).t
    task.sum_exec += now - task.exec_start
    task.vruntime += now - task.exec_start
    task.exec_start = now


@jit()
def pick_next_task(S, cpu):
    """The runnable task of core `cpu` that has run least; -1 if there is none."""
    best = -1
    for k in range(N_TASKS):
        task = S.tasks[k]
        if task.used == 0 or task.state != TASK_RUNNING or task.cpu != cpu:
            continue
        if task.on_cpu >= 0 and task.on_cpu != cpu:
            continue
        if best < 0 or task.vruntime < S.tasks[best].vruntime:
            best = k
    return best


@jit()
def nr_running(S, cpu):
    """Runnable tasks of a core, the one that runs included."""
    n = 0
    for k in range(N_TASKS):
        if S.tasks[k].used != 0 and S.tasks[k].state == TASK_RUNNING and S.tasks[k].cpu == cpu:
            n += 1
    return n


@jit()
def tick_start(S):
    """Have the next tick of this CPU: a multiple of 1/HZ."""
    host = this_cpu(S)
    interval = S.config.tick_interval
    host.tick_at = min(host.tick_at, (this_core(S).t // interval + 1) * interval)


@jit()
def needs_tick(S):
    """Whether this CPU has a tick because of its tasks (sched_can_stop_tick); perf may need one anyway."""
    return S.config.no_hz_idle != 0 or nr_running(S, S.this_cpu) > 1


@jit()
def tick_nohz_idle(S):
    """With NO_HZ_IDLE a CPU stops its tick when it begins to idle, until it ends (tick_nohz_idle_enter)."""
    if this_cpu(S).curr < 0:
        this_cpu(S).tick_at = NEVER
    else:
        tick_start(S)


@jit()
def end_turn(S):
    """Whoever has the turn has given another core something to do: it may be its turn now."""
    for cpu in range(S.config.n_cores):
        S.cores[cpu].turn_end = 0


@jit()
def resched_cpu(S, cpu):
    """Have core `cpu` look for a better task; another core is told by an interrupt."""
    S.percpu[cpu].need_resched = 1
    if cpu != S.this_cpu:
        if S.percpu[cpu].curr < 0:  # it slept until now
            S.cores[cpu].t = max(S.cores[cpu].t, this_core(S).t)
        lapic_accept(S.cores[cpu].lapic, U64(RESCHEDULE_VECTOR))
        end_turn(S)


@jit()
def select_task_rq(S, task):
    """Where a task that becomes runnable goes: where it was, or to an allowed core that idles."""
    if may_run_on(task, task.cpu) and nr_running(S, task.cpu) == 0:
        return task.cpu
    for cpu in range(S.config.n_cores):
        if may_run_on(task, cpu) and nr_running(S, cpu) == 0:
            return cpu
    if may_run_on(task, task.cpu):
        return task.cpu
    for cpu in range(S.config.n_cores):
        if may_run_on(task, cpu):
            return cpu
    return task.cpu


@jit()
def vruntime_now(S, cpu):
    """Virtual runtime of the task that runs on core `cpu`, up to that core's time."""
    task = S.tasks[S.percpu[cpu].curr]
    return task.vruntime + S.cores[cpu].t - task.exec_start


@jit()
def wake_up_task(S, k):
    """Make task k runnable (try_to_wake_up)."""
    task = S.tasks[k]
    if task.used == 0 or task.state != TASK_INTERRUPTIBLE:
        return
    if task.on_cpu < 0:
        cpu = select_task_rq(S, task)
        if cpu != task.cpu:
            task.cpu = cpu
            task.migrations += ONE
    cpu = task.cpu
    task.state = TASK_RUNNING
    task.wake_at = NEVER
    task.last_t = max(task.last_t, this_core(S).t)
    host = S.percpu[cpu]
    # Who slept does not get all of that time back, only the benefit of a slice.
    task.vruntime = max(task.vruntime, host.min_vruntime - S.config.sched_slice)
    if host.curr < 0 or task.vruntime < vruntime_now(S, cpu):
        resched_cpu(S, cpu)
    if nr_running(S, cpu) > 1:
        if cpu == S.this_cpu:
            tick_start(S)
        else:
            resched_cpu(S, cpu)  # tick_nohz_full_kick_cpu(): its tick is its own to start


@jit()
def next_wakeup(S):
    """When the first task that sleeps on this CPU wants to wake, or NEVER."""
    at = NEVER
    for k in range(N_TASKS):
        task = S.tasks[k]
        if task.used != 0 and task.state == TASK_INTERRUPTIBLE and task.cpu == S.this_cpu:
            at = min(at, task.wake_at)
    return at


@jit()
def wake_sleepers(S):
    """hrtimer_wakeup() of every task of this CPU whose sleep is over: another CPU's timers are its own."""
    now = this_core(S).t
    for k in range(N_TASKS):
        if S.tasks[k].wake_at <= now and S.tasks[k].cpu == S.this_cpu:
            wake_up_task(S, k)


@jit()
def _kick_idle_core(S):
    # nohz_balancer_kick(): who idles may take a task that waits here, see pull_task()
    for cpu in range(S.config.n_cores):
        if S.percpu[cpu].curr >= 0 or cpu == S.this_cpu:
            continue
        for k in range(N_TASKS):
            task = S.tasks[k]
            waits = task.used != 0 and task.state == TASK_RUNNING and task.on_cpu < 0
            if waits and task.cpu == S.this_cpu and may_run_on(task, cpu):
                resched_cpu(S, cpu)
                return


@jit()
def scheduler_tick(S):
    """A slice is over when somebody else has run less; the next tick is armed while it is needed."""
    host = this_cpu(S)
    update_curr(S)
    if host.curr < 0 or not needs_tick(S):
        return
    tick_start(S)
    _kick_idle_core(S)
    if this_core(S).t >= host.slice_end and pick_next_task(S, S.this_cpu) != host.curr:
        host.need_resched = 1


@jit()
def pull_task(S):
    """An idle core takes a waiting task of another one (sched_balance_newidle); False if none can."""
    for k in range(N_TASKS):
        task = S.tasks[k]
        waits = task.used != 0 and task.state == TASK_RUNNING and task.on_cpu < 0
        if waits and task.cpu != S.this_cpu and may_run_on(task, S.this_cpu):
            task.cpu = S.this_cpu
            task.migrations += ONE
            return True
    return False
