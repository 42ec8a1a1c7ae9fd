"""A trace as signals: what has which value from when on; drawn by VCD and as counters by Perfetto."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import NamedTuple

from vpmu_emu.linux.trace_kinds import TR_SCHED_SWITCH
from vpmu_emu.machine import ring as mk
from vpmu_emu.tables.exits import exit_name
from vpmu_emu.tables.msrs import msr_name
from vpmu_emu.traces.recorder import Moment, Recording, Sample

HOST_MSRS = (mk.TR_HOST_RDMSR, mk.TR_HOST_WRMSR)
GUEST_MSRS = (mk.TR_GUEST_RDMSR, mk.TR_GUEST_WRMSR, mk.TR_GUEST_WRMSR_BLIND)


class Change(NamedTuple):
    """A signal has another value.

    Attributes:
        t: when, in 1/16 cycle.
        scope: where it is: ("cpu0", "msr"), ("vm0", "vcpu1", "pmu"), …
        name: what it is called there.
        value: a number, or a word.
    """

    t: int
    scope: tuple[str, ...]
    name: str
    value: int | str


def changes(recording: Recording) -> Iterator[Change]:
    """Every change in the order of time.

    `cpuN` has `task`, who runs, and with KVM `guest`, 1 in a guest, and `exit_reason`; its `msr` are what
    the host reads and writes, its `pmu` what the silicon holds. Of a guest `vmN.vcpuN` has `msr`, as the
    guest reads and writes them, and `pmu`, its counters as it sees them; without KVM that is all of `cpuN`.
    """
    events = (one for moment in recording.moments() for one in _of(recording, moment))
    looked = (one for sample in recording.samples for one in _sampled(sample))
    yield from _who(recording)
    # Of one time what was looked at comes last: it has all that had happened.
    yield from heapq.merge(events, looked, key=lambda change: change.t)


def guest_scope(recording: Recording, moment: Moment) -> tuple[str, ...]:
    """Whose a guest's registers are."""
    vm, vcpu = moment.task.vcpu
    return (f"vm{vm}", f"vcpu{vcpu}") if recording.has_host else (f"cpu{moment.cpu}",)


def _who(recording: Recording) -> Iterator[Change]:
    who = recording.who[0]
    for cpu, row in enumerate(who.current or ()):
        yield Change(0, (f"cpu{cpu}",), "task", who.tasks[row].comm if row >= 0 else "idle")


def _of(recording: Recording, moment: Moment) -> Iterator[Change]:
    t, kind, here = moment.t, moment.kind, (f"cpu{moment.cpu}",)
    if kind in HOST_MSRS:
        yield Change(t, (*here, "msr"), msr_name(moment.a), moment.b)
    elif kind in GUEST_MSRS:
        yield Change(t, (*guest_scope(recording, moment), "msr"), msr_name(moment.a), moment.b)
    elif kind == mk.TR_VM_EXIT:
        yield Change(t, here, "guest", 0)
        yield Change(t, here, "exit_reason", exit_name(moment.a & 0xFFFF))
    elif kind == mk.TR_VM_ENTRY:
        yield Change(t, here, "guest", 1)
    elif kind == TR_SCHED_SWITCH:
        yield Change(t, here, "task", moment.comes.comm.strip("<>"))


def _sampled(sample: Sample) -> Iterator[Change]:
    for name, value in sample.hardware.items():
        yield Change(sample.t, (f"cpu{sample.cpu}", "pmu"), name, value)
    for name, value in (sample.guest or {}).items():
        yield Change(sample.t, ("vm0", "vcpu0", "pmu"), name, value)
