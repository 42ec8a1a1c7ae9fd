"""What a host counts is the sum of what happened while it was entitled to: for any schedule of events.

The model sees only time and instructions as they pass (`pmu_charge` of the kernel's own work, the test's
work of programs and guests) and the attributes and states of the events. It adds; it knows no counters.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.linux.guests import system
from tests.tools.profiles import cases
from vpmu_emu.linux import native
from vpmu_emu.linux.calls import CALL_PERF_INSTALL, CALL_PERF_RESERVE, kernel_call
from vpmu_emu.linux.charge import charge
from vpmu_emu.linux.perf.event import (
    perf_event_disable,
    perf_event_enable,
    perf_event_read_value,
    perf_event_release_kernel,
    perf_init,
)
from vpmu_emu.linux.perf.pmi import handle_nmis
from vpmu_emu.linux.perf.sched import perf_event_task_sched, perf_rotate_context
from vpmu_emu.linux.perf.tick import perf_event_task_tick
from vpmu_emu.linux.perf.times import ctx_cpu, perf_event_update_time, sched_clock
from vpmu_emu.linux.state import (
    CTX_TASK,
    FROM_GUEST,
    FROM_KERNEL,
    FROM_USER,
    N_EVENTS,
    PERF_EVENT_STATE_ACTIVE,
    PERF_EVENT_STATE_INACTIVE,
    PERF_EVENT_STATE_OFF,
    PERF_TYPE_RAW,
    PERF_TYPE_SOFTWARE,
)
from vpmu_emu.machine.pmu import C_BRANCH, C_CYCLES, C_INST, pmu_check, pmu_set_global_ctrl
from vpmu_emu.machine.u64 import U64

pytestmark = [pytest.mark.uncompiled, pytest.mark.inner]

INSTRUCTIONS, CYCLES, REF, BRANCHES = 0xC0, 0x3C, 0x0300, 0xC4
KERNEL, USER, GUEST_KERNEL, GUEST_USER = "kernel", "user", "guest kernel", "guest user"


class Machine:
    """One CPU of a host, driven by hand, and the model beside it.

    Attributes:
        counted: what each event should have counted outside of the kernel.
        enabled, running: time that each should have been enabled and on a counter.
    """

    def __init__(self, gp=8):
        system_ = system("    EXIT 0\n", "emulated", settings={"pmu.gp": gp})
        self.S, self.M, self.E = system_.S, system_.M, system_.E
        self.core, self.host = self.S.cores[0], self.S.percpu[0]
        self.S.config.tick_interval = 1 << 50  # no throttling: nothing is lost
        self.counted = [0] * N_EVENTS
        self.enabled = [0] * N_EVENTS
        self.running = [0] * N_EVENTS
        with np.errstate(over="ignore"):
            perf_init(self.S, self.E)

    def __enter__(self):
        charge = native.pmu_charge

        def watched(core, E, cycles, insns, branches):
            self.passes(int(cycles) << 4)
            charge(core, E, cycles, insns, branches)

        self.charge, native.pmu_charge = charge, watched
        self.quiet = np.errstate(over="ignore")
        self.quiet.__enter__()
        return self

    def __exit__(self, *_):
        self.quiet.__exit__(None, None, None)
        native.pmu_charge = self.charge

    def events(self):
        return [i for i in range(int(self.S.perf_rows)) if self.S.perf_events[i].used]

    def passes(self, time):
        """Time passes: it counts for every event whose context is active."""
        for i in self.events():
            event = self.S.perf_events[i]
            if ctx_cpu(self.S, event.ctx) != 0:
                continue
            leads = int(self.S.perf_events[event.leader].state)
            state = min(int(event.state), leads) if leads <= PERF_EVENT_STATE_OFF else int(event.state)
            self.enabled[i] += time if state >= PERF_EVENT_STATE_INACTIVE else 0
            self.running[i] += time if state >= PERF_EVENT_STATE_ACTIVE else 0

    def work(self, where, instructions, branches, cycles):
        """Programs or guests do something on this CPU."""
        core, ring = self.core, 1 if where in (USER, GUEST_USER) else 0
        guest = where in (GUEST_KERNEL, GUEST_USER)
        if guest:  # atomic_switch_perf_msrs()
            before = core.pmu.global_ctrl
            pmu_set_global_ctrl(core, self.E, self.host.intel_ctrl & ~self.host.intel_ctrl_host_mask)
        self.passes(cycles << 4)
        for i in self.events():
            event = self.S.perf_events[i]
            if int(event.state) != PERF_EVENT_STATE_ACTIVE or int(event.pmu_type) != PERF_TYPE_RAW:
                continue
            out = event.exclude_guest if guest else event.exclude_host
            out = out or (event.exclude_user if ring else event.exclude_kernel)
            amounts = {INSTRUCTIONS: instructions, BRANCHES: branches, CYCLES: cycles}
            self.counted[i] += 0 if out else amounts.get(int(event.config), 0)
        core.t += cycles << 4
        for row, amount in ((C_INST, instructions), (C_BRANCH, branches), (C_CYCLES, cycles << 4)):
            core.total[ring, row] += U64(amount)
        pmu_check(core, self.E)
        if guest:
            pmu_set_global_ctrl(core, self.E, before)
        self.host.interrupted = FROM_GUEST if guest else FROM_USER
        handle_nmis(self.S, self.E)
        self.host.interrupted = FROM_KERNEL

    def open(self, **attributes):
        """perf_event_open(): the row, or a negative errno."""
        i = next(k for k in range(N_EVENTS) if not self.S.perf_events[k].used)
        event = self.S.perf_events[i]
        for name in event.dtype.names:
            event[name] = 0
        event.vcpu = event.parent = event.pmc = event.spec = event.cpu = -1
        event.used, event.leader, event.pmu_type = 1, i, PERF_TYPE_RAW
        for name, value in attributes.items():
            event[name] = value
        self.counted[i] = self.enabled[i] = self.running[i] = 0
        if event.pmu_type == PERF_TYPE_RAW:  # as sys_perf_event_open() does
            event.used = 0
            kernel_call(self.S, self.M, self.E, CALL_PERF_RESERVE, i, 0)
            event.used = 1
        errno = int(kernel_call(self.S, self.M, self.E, CALL_PERF_INSTALL, i, 0))
        return i if errno == 0 else errno

    def check(self, i):
        """The event's count and times are what the model says."""
        value = int(perf_event_read_value(self.S, self.E, i))
        perf_event_update_time(self.S, i)  # RDPMC takes time
        event = self.S.perf_events[i]
        assert int(event.total_time_enabled) == self.enabled[i]
        assert int(event.total_time_running) == self.running[i]
        known = int(event.config) in (INSTRUCTIONS, BRANCHES, CYCLES)
        if event.exclude_kernel and int(event.pmu_type) == PERF_TYPE_RAW and known:
            assert value == self.counted[i]


# --- schedules ------------------------------------------------------------------------------------------
attributes = st.fixed_dictionaries(
    {
        "config": st.sampled_from([INSTRUCTIONS, BRANCHES, CYCLES]),
        "pinned": st.integers(0, 1),
        "exclude_user": st.integers(0, 1),
        "exclude_kernel": st.sampled_from([1, 1, 1, 0]),
        "exclude_host": st.integers(0, 1),
        "exclude_guest": st.integers(0, 1),
        "sample_period": st.sampled_from([0, 0, 50, 700]),
        "state": st.sampled_from([PERF_EVENT_STATE_OFF, PERF_EVENT_STATE_INACTIVE]),
        "ctx": st.sampled_from([0, 0, CTX_TASK, CTX_TASK + 1]),
        "cpu": st.sampled_from([-1, 0, 1]),
    }
)
work = st.tuples(
    st.sampled_from([USER, GUEST_KERNEL, GUEST_USER]),
    st.integers(0, 300),
    st.integers(0, 60),
    st.integers(1, 400),
)
which = st.integers(0, N_EVENTS - 1)
steps = st.one_of(
    st.tuples(st.just("open"), attributes, st.booleans()),
    st.tuples(st.just("open"), attributes, st.booleans()),
    st.tuples(st.just("open"), attributes, st.booleans()),
    st.tuples(st.just("work"), work),
    st.tuples(st.just("work"), work),
    st.tuples(st.just("enable"), which),
    st.tuples(st.just("disable"), which),
    st.tuples(st.just("close"), which),
    st.tuples(st.just("switch"), st.sampled_from([-1, CTX_TASK, CTX_TASK + 1])),
    st.tuples(st.just("rotate")),
    st.tuples(st.just("tick")),
)


def play(machine, step, last):
    """Do one step; the row that it opened, or `last`."""
    S, E, rows = machine.S, machine.E, machine.events()
    kind = step[0]
    if kind == "open" and len(rows) < 30:
        asked = dict(step[1])
        if step[2] and last in rows:  # of the group of the last one
            leader = int(S.perf_events[last].leader)
            asked |= {k: int(S.perf_events[leader][k]) for k in ("ctx", "cpu")} | {"pinned": 0}
            asked["leader"] = leader
        if asked["ctx"] < CTX_TASK:
            asked["cpu"] = 0
        made = machine.open(**asked)
        return made if made >= 0 else last
    if kind == "work":
        machine.work(*step[1])
    elif kind in ("enable", "disable") and rows:
        act = perf_event_enable if kind == "enable" else perf_event_disable
        act(S, E, rows[step[1] % len(rows)])
    elif kind == "close" and rows:
        i = rows[step[1] % len(rows)]
        machine.check(i)
        perf_event_release_kernel(S, E, i)
    elif kind == "switch":
        perf_event_task_sched(S, E, step[1])
    elif kind == "rotate":
        perf_rotate_context(S, E)
    elif kind == "tick":
        perf_event_task_tick(S, E)
    return last


@settings(max_examples=cases(day=8, laws=100, night=1000, uncompiled=8))
@given(st.lists(steps, min_size=40, max_size=80))
def test_counts_and_times_are_those_of_the_entitled(schedule):
    with Machine(gp=2) as machine:  # few counters, so that they are fought for
        last = -1
        for step in schedule:
            last = play(machine, step, last)
            # no two events on one counter, and only ACTIVE ones on any
            on = [int(i) for i in machine.host.events if i >= 0]
            assert len(set(on)) == len(on)
            states = [int(machine.S.perf_events[i].state) for i in on]
            assert set(states) <= {PERF_EVENT_STATE_ACTIVE}
            assert machine.host.disable_count == 0
            assert machine.host.enabled == 1
        for i in machine.events():
            machine.check(i)


@settings(max_examples=cases(day=8, laws=100, night=1000, uncompiled=8))
@given(st.lists(steps, min_size=40, max_size=80))
def test_groups_are_on_counters_together(schedule):
    """Of a group whose leader is ACTIVE every member that is enabled is ACTIVE, of another one none."""
    with Machine(gp=2) as machine:  # few counters, so that they are fought for
        last = -1
        for step in schedule:
            last = play(machine, step, last)
            for i in machine.events():
                event = machine.S.perf_events[i]
                leads = int(machine.S.perf_events[int(event.leader)].state)
                if leads == PERF_EVENT_STATE_ACTIVE:
                    assert int(event.state) != PERF_EVENT_STATE_INACTIVE
                else:
                    assert int(event.state) != PERF_EVENT_STATE_ACTIVE


def test_kernel_work_is_counted_by_whoever_does_not_exclude_it():
    """One pinned event of each kind: its count grows by exactly what the kernel retires."""
    with Machine() as machine:
        S, E = machine.S, machine.E
        both = machine.open(config=INSTRUCTIONS, pinned=1)
        user = machine.open(config=INSTRUCTIONS, pinned=1, exclude_kernel=1)
        guest = machine.open(config=INSTRUCTIONS, pinned=1, exclude_host=1)
        start = [int(perf_event_read_value(S, E, i)) for i in (user, guest, both)]
        # an RDPMC retires after it has read
        retired = int(machine.core.total[0, C_INST]) - int(S.config.costs[native.COST_RDPMC][1])
        for row in range(20):
            charge(S, E, row)
        grown = int(machine.core.total[0, C_INST]) - retired
        assert int(perf_event_read_value(S, E, both)) == start[2] + grown > start[2]
        assert [int(perf_event_read_value(S, E, i)) for i in (user, guest)] == start[:2]


# --- rotation -------------------------------------------------------------------------------------------
@settings(max_examples=cases(day=2, laws=20, night=200, uncompiled=2))  # seconds each
@given(
    st.lists(st.tuples(st.integers(10**6, 10**7), st.integers(0, 10**6)), min_size=17, max_size=20),
    st.integers(9, 16),
)
def test_rotation_bounds_what_scaling_can_miss(slices, n):
    """`n` branch events on 8 counters, whatever the rates of branches are in each turn.

    Each is on a counter in 8 of n turns running, so that it sees whole turns only; its scaled count is a
    mean over those, and lies between the count that the slowest turn's rate would give for the whole
    time and the fastest one's.
    """
    with Machine() as machine:
        S, E = machine.S, machine.E
        rows = [machine.open(config=BRANCHES, exclude_kernel=1) for _ in range(n)]
        turns = {i: [] for i in rows}
        rates = []
        for number, (cycles, branches) in enumerate(slices):
            begin = int(machine.core.t)
            for i in rows:
                if int(S.perf_events[i].state) == PERF_EVENT_STATE_ACTIVE:
                    turns[i].append(number)
            machine.work(USER, 0, branches, cycles)
            assert perf_rotate_context(S, E) == 1
            rates.append((branches, int(machine.core.t) - begin))
        low = min(b / t for b, t in rates)
        high = max(b / t for b, t in rates)
        for i in rows:
            machine.check(i)
            event = S.perf_events[i]
            enabled, running = int(event.total_time_enabled), int(event.total_time_running)
            scaled = int(event.count) * enabled / running
            # the kernel's own time between two turns is part of either: some 10,000 cycles
            assert 0.98 * low * enabled <= scaled <= 1.02 * high * enabled, (low, high)
            # fair: in n turns running, 8
            for first in range(len(slices) - n + 1):
                assert len([k for k in turns[i] if first <= k < first + n]) == 8
        assert sum(len(t) for t in turns.values()) == 8 * len(slices)


# --- clocks ---------------------------------------------------------------------------------------------
@given(st.lists(st.tuples(work, st.sampled_from([-1, CTX_TASK, CTX_TASK + 1])), max_size=20))
def test_clocks_count_the_time_that_they_run(schedule):
    with Machine() as machine:
        S, E = machine.S, machine.E
        cpu = machine.open(pmu_type=PERF_TYPE_SOFTWARE, config=0)
        task = machine.open(pmu_type=PERF_TYPE_SOFTWARE, config=1, ctx=CTX_TASK)
        switches = machine.open(pmu_type=PERF_TYPE_SOFTWARE, config=3)
        of_task = machine.open(pmu_type=PERF_TYPE_SOFTWARE, config=3, ctx=CTX_TASK)
        left = 0
        for what, ctx in schedule:
            machine.work(*what)
            left += int(machine.host.task_ctx) == CTX_TASK
            perf_event_task_sched(S, E, ctx)
        for i in (cpu, task):
            machine.check(i)
            nanoseconds = int(sched_clock(S, machine.running[i]))
            assert abs(int(S.perf_events[i].count) - nanoseconds) <= 1 + len(schedule)
        assert int(perf_event_read_value(S, E, switches)) == len(schedule)
        assert int(perf_event_read_value(S, E, of_task)) == left
