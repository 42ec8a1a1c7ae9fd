"""The first instruction after which two runs of one guest differ in anything that the guest could know.

Both go on instruction by instruction at first, then piece by piece at full speed; a piece behind which they
differ, or in which the guest was told something else, is cut into smaller ones from its beginning, the last
into single instructions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from vpmu_emu.asm import Program
from vpmu_emu.compare.lane import Lane, Look, bit_of, memory_differs
from vpmu_emu.machine import ring as mk
from vpmu_emu.options import Options

FIRST = 2048  # instructions that are stepped whatever comes of it
SINGLE, SHORT, LONG = 256, 4096, 1 << 20  # a piece that is stepped, the first other one, the longest
CUT = 16  # pieces that a longer one becomes

ALL_BITS = (1 << 64) - 1
GLOBALS = ("IA32_PERF_GLOBAL_CTRL", "IA32_PERF_GLOBAL_STATUS")

# What a guest is told, and when it is interrupted: kind, index, value, and where.
_TOLD = {
    mk.TR_GUEST_RDMSR, mk.TR_GUEST_RDPMC, mk.TR_GUEST_WRMSR, mk.TR_GUEST_WRMSR_BLIND, mk.TR_MSR_FAULT,
    mk.TR_MSR_DROPPED, mk.TR_RDPMC_FAULT,
}  # fmt: skip
_INTERRUPTED = {mk.TR_EXCEPTION, mk.TR_IRQ, mk.TR_NMI}


@attrs.frozen
class Differs:
    """One thing that is not the same: its kind (stop, counter, control, status, register …), its name."""

    kind: str
    name: str
    a: Any
    b: Any


@attrs.frozen
class Difference:
    """Where two runs part.

    Attributes:
        at: the number of the instruction; one less are done in both, and nothing differed.
        before, after: both guests in front of it and behind it.
        things: what differs, the most telling first.
        since: the number of the first event of each trace that belongs to it.
        lanes: the two runs, as they are behind it.
        start: both guests in front of their first instruction.
    """

    at: int
    before: tuple[Look, Look]
    after: tuple[Look, Look]
    things: tuple[Differs, ...]
    since: tuple[int, int]
    lanes: tuple[Lane, Lane]
    start: tuple[Look, Look]


def _bits_of_both(a: Look, b: Look) -> int:
    """GLOBAL_* without bits of counters that only one of the guests has: RESET sets them in GLOBAL_CTRL."""
    alone = 0
    for name in a.counters.keys() ^ b.counters.keys():
        alone |= 1 << bit_of(name)
    return ALL_BITS & ~alone


def things_that_differ(a: Look, b: Look, memory: int | None = None) -> list[Differs]:
    """What of two guests is not the same: a counter that runs is nothing that a guest knows."""
    found = []
    ends = [(None if s is None else (s.reason, s.info)) for s in (a.stop, b.stop)]
    if ends[0] != ends[1]:
        found.append(Differs("stop", "stop", a.stop, b.stop))
    stopped = [name for name in a.counters if name in b.counters and name not in a.running | b.running]
    found += [
        Differs("counter", name, a.counters[name], b.counters[name])
        for name in stopped if a.counters[name] != b.counters[name]
    ]  # fmt: skip
    both = _bits_of_both(a, b)
    for name in (name for name in a.controls if name in b.controls):
        one, other = a.controls[name], b.controls[name]
        if (one ^ other) & (both if name in GLOBALS else ALL_BITS):
            kind = "status" if name == "IA32_PERF_GLOBAL_STATUS" else "control"
            found.append(Differs(kind, name, one, other))
    found += [
        Differs("register", name, value, b.registers[name])
        for name, value in a.registers.items() if value != b.registers[name]
    ]  # fmt: skip
    if a.done != b.done:
        found.append(Differs("instructions", "instructions", a.done, b.done))
    if a.serial != b.serial:
        found.append(Differs("serial", "characters printed", a.serial, b.serial))
    if memory is not None:
        found.append(Differs("memory", f"{memory:#x}", None, None))
    return found


def _told(lane: Lane, since: int) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for event in lane.events(since):
        kind = int(event["kind"])
        if kind in _TOLD:
            kind = mk.TR_GUEST_WRMSR if kind == mk.TR_GUEST_WRMSR_BLIND else kind
            found.append((kind, int(event["a"]), int(event["b"]), int(event["rip"])))
        elif kind in _INTERRUPTED:
            found.append((kind, int(event["a"]), 0, int(event["rip"])))
    return found


class Comparison:
    """Two runs of one program that go on together.

    Args:
        program: what both run.
        a, b: their options, each with its name.
        ready: called before compiled code is needed.

    Raises:
        VpmuError: whatever is wrong with program or options.
    """

    def __init__(
        self,
        program: Program,
        a: tuple[str, Options],
        b: tuple[str, Options],
        *,
        ready: Callable[[], None] | None = None,
    ) -> None:
        self.lanes = tuple(
            Lane(name, program, options, ready)
            for name, options in (a, b)
        )
        self.start: tuple[Look, Look]

    def first(self) -> Difference | None:
        """Where they part; None if they end the same, or come to their limits without a difference."""
        a, b = self.lanes
        at, size = FIRST, SHORT
        for lane in (a, b):
            lane.to(0)
        self.start = a.look(0), b.look(0)
        things = things_that_differ(*self.start, memory_differs(a, b))
        if things:
            return Difference(0, self.start, self.start, tuple(things), (0, 0), (a, b), self.start)
        found = self._steps(0, FIRST)
        if found is not None:
            return found
        while a.stop is None or b.stop is None:
            found = self._piece(at, size)
            if found is not None:
                return found
            at, size = at + size, min(2 * size, LONG)
        return None

    def _piece(self, at: int, size: int) -> Difference | None:
        """The first difference among `size` instructions from `at` on, where both stand."""
        if size <= SINGLE:
            return self._steps(at, size)
        a, b = self.lanes
        saved = a.save(), b.save()
        heads = a.head, b.head
        for lane in (a, b):
            lane.to(at + size)
            lane.settle()
        lost = any(lane.lost(head) for lane, head in zip(self.lanes, heads, strict=True))
        if not lost and _told(a, heads[0]) == _told(b, heads[1]):
            looks = a.look(at + size), b.look(at + size)
            if not things_that_differ(*looks, memory_differs(a, b)):
                return None
        for lane, state in zip(self.lanes, saved, strict=True):
            lane.restore(state)
        piece = max(size // CUT, SINGLE)
        for start in range(at, at + size, piece):
            found = self._piece(start, piece)
            if found is not None:
                return found
        return None

    def _steps(self, at: int, size: int) -> Difference | None:
        a, b = self.lanes
        saved = a.save(), b.save()
        heads = a.head, b.head
        k = at
        while k < at + size and (a.stop is None or b.stop is None):
            k += 1
            for lane in (a, b):
                lane.to(k)
                lane.settle()
            glance = a.glance()
            if glance and glance == b.glance() and heads == (a.head, b.head):
                continue  # nothing else can have changed
            heads = a.head, b.head
            looks = a.look(k), b.look(k)
            if things_that_differ(*looks, memory_differs(a, b)):
                same_place = looks[0].rip == looks[1].rip and (a.stop is None) == (b.stop is None)
                if same_place or not self._only_early(k):
                    return self._closely(k, saved)
        return None

    def _closely(self, k: int, saved: tuple[Any, Any]) -> Difference:
        """The difference behind instruction k, both runs having gone there once more from `saved`."""
        a, b = self.lanes
        for lane, state in zip(self.lanes, saved, strict=True):
            lane.restore(state)
            lane.to(k - 1)
            lane.settle()
        before, heads = (a.look(k - 1), b.look(k - 1)), (a.head, b.head)
        for lane in (a, b):
            lane.to(k)
            lane.settle()
        after = a.look(k), b.look(k)
        things = things_that_differ(*after, memory_differs(a, b))
        return Difference(k, before, after, tuple(things), heads, (a, b), self.start)

    def _only_early(self, at: int) -> bool:
        # An interrupt may be taken right behind an instruction or right before the next one: whoever has it
        # stands at its handler already. A HLT for good ends a run in KVM, and behind it on silicon.
        a, b = self.lanes
        saved = a.save(), b.save()
        for lane in (a, b):
            lane.to(at + 1)
            lane.settle()
        same = not things_that_differ(a.look(at + 1), b.look(at + 1), memory_differs(a, b))
        for lane, state in zip(self.lanes, saved, strict=True):
            lane.restore(state)
        return same
