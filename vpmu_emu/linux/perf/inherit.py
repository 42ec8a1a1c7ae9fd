"""A task that is born counts for the events of its parent that say so: each gets a copy of its own.

perf_event_init_task(), inherit_task_group() and inherit_event() of kernel/events/core.c. Plain Python: a
clone() is rare.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vpmu_emu.linux.perf.event import ORPHAN
from vpmu_emu.linux.state import (
    CTX_TASK,
    N_EVENTS,
    PERF_EVENT_STATE_INACTIVE,
    PERF_EVENT_STATE_OFF,
)


def perf_event_init_task(S: Any, install: Callable[[int], int], parent: int, child: int) -> int:
    """Give task `child` copies of what task `parent` has in its context with attr.inherit.

    A copy belongs to the event that a program opened, however many generations ago, and counts from 0. Of
    a group all members are copied if its leader is. `install` does perf_install_in_context() for a row.

    Returns 0, or the negative errno of what could not be copied; the caller then ends the task, which
    frees the others.
    """
    copies: dict[int, int] = {}
    old = [i for i in range(int(S.perf_rows)) if _inherited(S, i, CTX_TASK + parent)]
    # a leader before its members
    for i in sorted(old, key=lambda i: (int(S.perf_events[i].leader) != i, int(S.perf_events[i].order))):
        event = S.perf_events[i]
        origin = int(event.parent) if int(event.parent) >= 0 else i
        row = next((k for k in range(N_EVENTS) if not S.perf_events[k].used), None)
        if row is None:
            return -12
        copy = S.perf_events[row]
        S.perf_events[row] = S.perf_events[origin]  # its attributes
        copy.ctx = CTX_TASK + child
        copy.parent = origin
        copy.leader = copies.get(int(event.leader), row)
        # The state is that of the task which clones: that of the origin may be over.
        wants = int(event.state) >= PERF_EVENT_STATE_INACTIVE
        copy.state = PERF_EVENT_STATE_INACTIVE if wants else PERF_EVENT_STATE_OFF
        errno = install(row)
        if errno != 0:
            return errno
        # the period that the frequency has found so far
        copy.period = copy.last_period = copy.period_left = S.perf_events[origin].period
        copies[i] = row
    for i, row in copies.items():  # inherit_group(): alike from here on
        S.perf_events[row].group_generation = S.perf_events[i].group_generation
    return 0


def _inherited(S: Any, i: int, ctx: int) -> bool:
    event = S.perf_events[i]
    if not event.used or int(event.ctx) != ctx or int(event.parent) == ORPHAN:
        return False
    return bool(S.perf_events[int(event.leader)].inherit) and not event.watchdog
