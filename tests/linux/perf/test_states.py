"""Who is OFF, INACTIVE, ACTIVE or in ERROR after any calls: a model with lists and nothing else.

The model is written from the rules of kernel/events/core.c. It asks for counters by trying all ways to give
each event one, and knows neither rows nor registers.
"""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.linux.perf.test_laws import BRANCHES, CYCLES, INSTRUCTIONS, REF, USER, Machine
from tests.tools.profiles import cases
from vpmu_emu.linux.perf.event import (
    EINVAL,
    perf_event_disable,
    perf_event_enable,
    perf_event_release_kernel,
)
from vpmu_emu.linux.perf.sched import perf_event_task_sched, perf_rotate_context
from vpmu_emu.linux.state import (
    CTX_NONE,
    CTX_TASK,
    PERF_EVENT_STATE_ACTIVE,
    PERF_EVENT_STATE_ERROR,
    PERF_EVENT_STATE_INACTIVE,
    PERF_EVENT_STATE_OFF,
    PERF_TYPE_RAW,
    PERF_TYPE_SOFTWARE,
)

pytestmark = [pytest.mark.uncompiled, pytest.mark.inner]

OFF, INACTIVE, ACTIVE = PERF_EVENT_STATE_OFF, PERF_EVENT_STATE_INACTIVE, PERF_EVENT_STATE_ACTIVE
ERROR = PERF_EVENT_STATE_ERROR
LOADS = 0x81D0  # counters 0 to 3 only
STALLS = 0x04A4  # counter 0
DUMMY = 9
CPU, TASKS = 0, (CTX_TASK, CTX_TASK + 1)
MOST = 24


class Event:
    """What the model knows of an event; `hardware`: its group is in the lists of the core PMU."""

    def __init__(self, config, ctx, cpu, pinned, disabled, leader, exclusive):
        self.config, self.ctx, self.cpu = config, ctx, cpu
        self.pinned, self.disabled = pinned, disabled
        self.state = OFF if disabled else INACTIVE
        self.leader = leader or self
        self.exclusive = exclusive
        self.members = []
        self.hardware = config != DUMMY

    @property
    def group(self):
        return [self, *self.members]


class Model:
    """Linux's lists of one CPU with `gp` general-purpose counters."""

    def __init__(self, gp):
        self.allowed = {
            INSTRUCTIONS: {*range(gp), "fixed 0"},
            CYCLES: {*range(gp), "fixed 1"},
            REF: {"fixed 2"},
            BRANCHES: {*range(gp)},
            LOADS: {*range(min(gp, 4))},
            STALLS: {0},
        }
        self.lists = {(ctx, pinned): [] for ctx in (CPU, *TASKS) for pinned in (0, 1)}
        self.rotate = dict.fromkeys((CPU, *TASKS), False)
        self.task = None

    # --- counters ---------------------------------------------------------------------------------------
    def fit(self, events):
        """Whether each can have a counter of its own."""
        owner = {}

        def place(event, seen):
            for counter in self.allowed[event.config] - seen:
                seen.add(counter)
                if counter not in owner or place(owner[counter], seen):
                    owner[counter] = event
                    return True
            return False

        return all(place(e, set()) for e in events if e.config != DUMMY)

    def everybody(self):
        return [e for one in self.lists.values() for leader in one for e in leader.group]

    # --- in and out -------------------------------------------------------------------------------------
    def here(self, leader):
        return leader.cpu in (-1, CPU)

    def current(self, ctx):
        return ctx in (CPU, self.task)

    def group_in(self, leader):
        wanting = [e for e in leader.group if e.state == INACTIVE]
        if self.fit([e for e in self.everybody() if e.state == ACTIVE] + wanting):
            for event in wanting:
                event.state = ACTIVE

    @staticmethod
    def group_out(leader):
        for event in leader.group:
            if event.state == ACTIVE:
                event.state = INACTIVE

    def may_be_on(self, leader):
        """Nobody goes on beside an exclusive group, nor that one behind another of its list."""
        on = [e for e in self.everybody() if e.leader is e and e.hardware and e.state == ACTIVE]
        mine = [e for e in on if leader.exclusive and e in self.lists[leader.ctx, leader.pinned]]
        return not mine and not any(e.exclusive for e in on)

    def class_out(self, ctx, pinned, software=False):
        if ctx is None:
            return
        if not pinned:
            self.rotate[ctx] = False
        for leader in self.lists[ctx, pinned]:
            if leader.hardware or software:
                self.group_out(leader)

    def class_in(self, ctx, pinned):
        if ctx is None:
            return
        room = True
        for leader in self.lists[ctx, pinned]:
            if leader.state != INACTIVE or not self.here(leader):
                continue
            if not leader.hardware or (room and self.may_be_on(leader)):
                self.group_in(leader)
            if leader.state == INACTIVE:
                room = False
                if pinned:
                    leader.state = ERROR
                else:
                    self.rotate[ctx] = True

    def resched(self, leader):
        """ctx_resched() for one of this group."""
        if not leader.hardware:
            if leader.state >= INACTIVE and self.here(leader):
                self.group_out(leader)
                self.group_in(leader)
            return
        cpu, pinned = leader.ctx == CPU, leader.pinned
        out = {
            (CPU, 1): cpu and pinned,
            (self.task, 1): pinned,
            (CPU, 0): cpu or pinned,
            (self.task, 0): True,
        }
        for which, gone in out.items():
            if gone:
                self.class_out(*which)
        for which, gone in out.items():
            if gone:
                self.class_in(*which)

    # --- what programs do -------------------------------------------------------------------------------
    def open(self, event):
        """Install an event; False if its group could never be on counters."""
        leader = event.leader
        others = [e for e in leader.members if e.state > OFF]  # who is off is not asked
        if not self.fit([leader, *others, event] if leader is not event else [event]):
            return False
        moved = event.hardware and not leader.hardware
        if leader is event:
            self.lists[event.ctx, event.pinned].append(event)
        else:
            leader.members.append(event)
            if moved:  # move_group
                for old in leader.group[:-1]:
                    old.state = OFF if old.disabled else INACTIVE
                    old.hardware = True
                one = self.lists[leader.ctx, leader.pinned]
                one.remove(leader)
                one.append(leader)
            event.hardware = leader.hardware
        wants = leader.state if leader.state <= OFF else event.state
        if self.current(event.ctx) and (wants != OFF or (moved and leader.state == INACTIVE)):
            self.resched(leader)
        return True

    def enable(self, event):
        if event.state >= INACTIVE:
            return
        event.state = INACTIVE
        if not self.current(event.ctx) or not self.here(event):
            return
        if event.leader is event or event.leader.state == ACTIVE:
            self.resched(event.leader)

    def disable(self, event):
        if event.state < INACTIVE:
            return
        if event.leader is event:
            self.group_out(event)
        event.state = OFF

    def close(self, event):
        if event.leader is not event:
            event.leader.members.remove(event)
            return
        self.lists[event.ctx, event.pinned].remove(event)
        for member in event.members:
            member.leader = member
            self.lists[member.ctx, 0].append(member)

    def switch(self, task):
        if self.task is not None:
            for pinned in (1, 0):
                self.class_out(self.task, pinned, software=True)
        self.task = task
        if task is None or not (self.lists[task, 0] or self.lists[task, 1]):
            return
        if self.lists[task, 1]:
            self.class_out(CPU, 0, software=True)
            self.class_in(task, 1)
            self.class_in(CPU, 0)
        self.class_in(task, 0)

    def to_rotate(self, ctx):
        if ctx is None or not self.rotate[ctx]:
            return None
        self.rotate[ctx] = False
        mine = [e for e in self.lists[ctx, 0] if e.hardware and self.here(e)]
        active = [e for e in mine if e.state == ACTIVE]
        anywhere = [e for e in mine if e.cpu == -1]
        return next(iter(active or anywhere or mine), None)

    def turn(self):
        task_event, cpu_event = self.to_rotate(self.task), self.to_rotate(CPU)
        if task_event or cpu_event:
            self.class_out(self.task, 0)
        if cpu_event:
            self.class_out(CPU, 0)
            self.last(cpu_event)
            self.class_in(CPU, 0)
        if task_event:
            self.last(task_event)
        if task_event or cpu_event:
            self.class_in(self.task, 0)

    def last(self, event):
        one = self.lists[event.ctx, 0]
        one.remove(event)
        one.append(event)


# --- schedules ------------------------------------------------------------------------------------------
attributes = st.tuples(
    st.sampled_from(
        [INSTRUCTIONS, CYCLES, REF, REF, BRANCHES, BRANCHES, LOADS, LOADS, STALLS, DUMMY]
    ),
    st.sampled_from([CPU, CPU, *TASKS]),
    st.sampled_from([-1, -1, -1, 0, 1]),
    st.sampled_from([0, 0, 1]),  # pinned
    st.sampled_from([0, 0, 0, 1]),  # disabled
    st.sampled_from([None, None, *range(6)]),  # which group it joins
    st.sampled_from([0] * 5 + [1]),  # exclusive, if it leads
)
opens = st.tuples(st.just("open"), attributes)
steps = st.one_of(
    opens,
    opens,
    opens,
    st.tuples(st.sampled_from(["enable", "enable", "disable", "close"]), st.integers(0, MOST)),
    st.tuples(st.just("switch"), st.sampled_from([None, *TASKS])),
    st.tuples(st.just("turn"), st.none()),
)


class Both:
    """The machine and the model, told the same."""

    def __init__(self, machine, gp):
        self.machine, self.model, self.rows = machine, Model(gp), {}
        perf_event_task_sched(machine.S, machine.E, CTX_NONE)

    def step(self, kind, what):
        machine, model = self.machine, self.model
        S, E = machine.S, machine.E
        events = list(self.rows)
        if kind == "open":
            self.open(*what)
        elif kind == "switch":
            model.switch(what)
            perf_event_task_sched(S, E, CTX_NONE if what is None else what)
        elif kind == "turn":
            model.turn()
            perf_rotate_context(S, E)
        elif events:
            event = events[what % len(events)]
            row = self.rows[event]
            getattr(model, kind)(event)
            if kind == "close":
                machine.check(row)
                perf_event_release_kernel(S, E, row)
                del self.rows[event]
            else:
                (perf_event_enable if kind == "enable" else perf_event_disable)(S, E, row)

    def open(self, config, ctx, cpu, pinned, disabled, join, exclusive):
        leaders = [e for e in self.rows if e.leader is e]
        leader = leaders[-1 - join % len(leaders)] if join is not None and leaders else None
        if leader:
            ctx, cpu, pinned = leader.ctx, leader.cpu, 0
        if len(self.rows) == MOST:
            return
        cpu = 0 if ctx == CPU else cpu
        exclusive = exclusive if not leader and config != DUMMY else 0
        event = Event(config, ctx, cpu, pinned, disabled, leader, exclusive)
        row = self.machine.open(
            config=config, ctx=ctx, cpu=cpu, pinned=pinned, exclude_kernel=1,
            disabled=disabled, exclusive=exclusive, state=OFF if disabled else INACTIVE,
            pmu_type=PERF_TYPE_SOFTWARE if config == DUMMY else PERF_TYPE_RAW,
            **({"leader": self.rows[leader]} if leader else {}),
        )  # fmt: skip
        if self.model.open(event):
            self.rows[event] = row
        else:
            assert row == EINVAL

    def check(self):
        found = [int(self.machine.S.perf_events[row].state) for row in self.rows.values()]
        assert found == [event.state for event in self.rows]


@settings(max_examples=cases(day=10, laws=100, night=1000, uncompiled=10))
@given(st.sampled_from([1, 2, 2, 5]), st.lists(steps, min_size=20, max_size=80))
@example(
    2,
    [  # a software group goes to the core PMU, on or off as it was opened
        ("open", (DUMMY, CPU, -1, 0, 1, None, 0)),
        ("enable", 0),
        ("open", (DUMMY, CPU, -1, 0, 0, 0, 0)),
        ("disable", 1),
        ("open", (BRANCHES, CPU, -1, 0, 1, 0, 0)),
        ("enable", 0),
        ("close", 0),
    ],
)
@example(
    1,
    [  # members that are off may be more than the counters are; who is put on then ends the group
        ("open", (BRANCHES, CPU, -1, 1, 0, None, 0)),
        *[("open", (BRANCHES, CPU, -1, 0, 1, 0, 0))] * 4,
        ("enable", 3),
    ],
)
def test_states_are_those_of_the_rules(gp, schedule):
    with Machine(gp=gp) as machine:
        both = Both(machine, gp)
        for kind, what in schedule:
            both.step(kind, what)
            both.check()
            machine.work(USER, 10, 1, 20)
        for row in both.rows.values():
            machine.check(row)
