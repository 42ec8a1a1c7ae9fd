"""A run that is known can be had again: from the nearest state that was kept, by what followed it.

States are kept as the run goes on, the further apart the longer it lasts; what the debugger's user wrote is
written again where it was. `debug/session.py` says where to.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from vpmu_emu.errors import ConfigError
from vpmu_emu.machine.state import N_RING
from vpmu_emu.numerals import shown
from vpmu_emu.system import PAGE, Moment, System

MOST_MARKS = 128
MOST_VISITED = 1 << 14
MOST_BYTES = 512 << 20  # of memory that the states keep
SPACING = 0.025  # seconds of the engine from one to the next, at first
NEAR = 256  # 1/16 cycles: how far before its end a step back looks first
DENSE = (1 << 14, 1 << 18)  # and one to the last stop, before it takes states one by one
_WIDER = 8


@attrs.frozen
class Position:
    """A point of a run.

    Attributes:
        order: the times of all cores, added: no two points have the same, a later one has more.
        cpu, t: the core that ran last, and its time.
        settled: whether it has looked at what happens before its next instruction, which is yet to come.
        instructions: done by the program.
    """

    order: int
    cpu: int
    t: int
    settled: bool
    instructions: int


@attrs.frozen
class _Mark:
    position: Position
    moment: Moment
    writes: int  # that it has in it


@attrs.frozen
class _Write:
    position: Position
    again: Callable[[], object]


class History:
    """The states of one run that are kept, and the way to any point of it."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.base = system.base()
        self.spacing = SPACING
        self.ring_top = 0
        self.ring_from = 0
        self._writes: list[_Write] = []
        self._done = 0  # of them, before this point
        self._checkpoints: dict[int, tuple[Position, int]] = {}
        self._next = 0
        self._visited: list[Position] = []  # where somebody looked around
        self._marks: list[_Mark] = []
        self._near: _Mark | None = None
        self._kept_at = 0.0
        self._bytes = 0  # of pages that the marks keep
        self._mark(self.here(False))

    # --- keeping ----------------------------------------------------------------------------------

    def here(self, settled: bool) -> Position:
        """Where the run is."""
        system = self.system
        cpu = int(system.E.cpu)
        order = sum(int(core.t) for core in system.cores)
        return Position(order, cpu, system.time, settled, system.instructions)

    def __len__(self) -> int:
        """How many states are kept."""
        return len(self._marks)

    @property
    def start(self) -> Position:
        """Where it began."""
        return self._marks[0].position

    def keep(self) -> None:
        """Called between slices: keep this state, if the last one that is kept is long ago."""
        if self.system.wall_s - self._kept_at < self.spacing:
            return
        here = self.here(False)
        if here.order > self._marks[-1].position.order:
            self._mark(here)

    def _mark(self, here: Position) -> None:
        last = self._marks[-1].moment if self._marks else None
        self._marks.append(_Mark(here, self.system.moment(self.base, last), self._done))
        if len(self._marks) > MOST_MARKS or self._bytes > MOST_BYTES:
            self._marks = self._marks[:-1:2] + self._marks[-1:]
            self.spacing *= 2
            kept = {id(data) for mark in self._marks for data in mark.moment.pages.values()}
            self._bytes = PAGE * len(kept)
        else:
            self._bytes += self._marks[-1].moment.size
        self._kept_at = self.system.wall_s

    # --- writing ----------------------------------------------------------------------------------

    def visit(self, here: Position) -> None:
        """Somebody looks around here: a step back from behind comes back to this very point."""
        at = bisect_right(self._visited, here.order, key=lambda position: position.order)
        if at and self._visited[at - 1].order == here.order:
            self._visited[at - 1] = here
        else:
            self._visited.insert(at, here)
        if len(self._visited) > MOST_VISITED:
            del self._visited[0]

    def visited_before(self, end: Position) -> Position | None:
        """The last such point before `end`."""
        at = bisect_left(self._visited, end.order, key=lambda position: position.order)
        return self._visited[at - 1] if at else None

    def _unvisit(self, order: int) -> None:
        del self._visited[bisect_right(self._visited, order, key=lambda position: position.order) :]

    def write(self, where: Position, again: Callable[[], object]) -> None:
        """What `again` does has been done at `where`: what was known of later is no longer so."""
        self.forget_later()
        kept = [mark for mark in self._marks if mark.position.order < where.order]
        self._marks = kept or self._marks[:1]
        self._near = None
        self._checkpoints = {
            n: (at, writes) for n, (at, writes) in self._checkpoints.items() if at.order <= where.order
        }
        self._unvisit(where.order)
        self._writes.append(_Write(where, again))
        self._done = len(self._writes)

    def forget_later(self) -> None:
        """The run goes on from here: writes that came later in it do not come again."""
        if self._done == len(self._writes):
            return
        self._unvisit(self._writes[self._done].position.order)
        del self._writes[self._done :]
        self._marks = [mark for mark in self._marks if mark.writes <= self._done]
        self._checkpoints = {n: c for n, c in self._checkpoints.items() if c[1] <= self._done}
        if self._near is not None and self._near.writes > self._done:
            self._near = None

    def restart(self) -> None:
        """Be at the start, as if nothing had been written."""
        self._done = 0
        self.forget_later()
        self._back(self._marks[0])

    # --- going ------------------------------------------------------------------------------------

    def checkpoint(self, here: Position) -> int:
        """Give this point a number."""
        self._next += 1
        self._checkpoints[self._next] = (here, self._done)
        return self._next

    def checkpoint_at(self, number: int) -> Position:
        """The point that has a number.

        Raises:
            ConfigError: none has it, or what it was of has been written over.
        """
        if number not in self._checkpoints:
            known = " ".join(map(str, self._checkpoints)) or "none"
            raise ConfigError("checkpoint", f"there is no checkpoint {shown(number)}", known)
        return self._checkpoints[number][0]

    def go(self, where: Position) -> Position:
        """Be at a point of this run, before here or after it, and where that is; nothing waits on the way.

        Writing an MSR takes time: what was written at this very point has been, then.
        """
        self._back(self._nearest(where))
        self._along(where)
        here = self.here(where.settled)
        return where if here.order == where.order else attrs.evolve(here, settled=True)

    def _nearest(self, where: Position) -> _Mark:
        at = bisect_right(self._marks, where.order, key=lambda mark: mark.position.order)
        found = self._marks[max(0, at - 1)]
        near = self._near
        if near is not None and found.position.order < near.position.order <= where.order:
            return near
        return found

    def _back(self, mark: _Mark) -> None:
        system = self.system
        self.ring_top = max(self.ring_top, int(system.E.ring_head))
        system.put_back(mark.moment, self.base)
        self._done = mark.writes
        lost = max(0, self.ring_top - N_RING)  # overwritten by what came later
        self.ring_from = min(int(system.E.ring_head), max(self.ring_from, lost))

    def _along(self, where: Position) -> None:
        while (write := self.next_write()) is not None and write.order <= where.order:
            self.write_again()
        self._to(where)

    def next_write(self) -> Position | None:
        """The next point at which something was written, None if nothing was later on."""
        return self._writes[self._done].position if self._done < len(self._writes) else None

    def write_again(self) -> None:
        """Go on to that point, and write what was written there."""
        write = self._writes[self._done]
        self._to(write.position)
        write.again()
        self._done += 1

    def _to(self, where: Position) -> None:
        if where.settled:
            self.system.settle_at(where.cpu, where.t)
        else:
            self.system.run_to(where.t)

    def before(self, end: Position, count: int, step: Callable[[], Any]) -> Position | None:
        """The point `count` steps of the program before `end`, None if the run has not so many.

        Args:
            end: where to count from.
            count: how many.
            step: runs one of them, heeding nothing.
        """
        first = self.start
        for write in self._writes[: self._done]:
            if write.position.order < end.order:
                first = write.position
        span = NEAR * max(1, count // 16)
        while True:
            whole = end.t - span <= first.t
            if whole:
                self.go(first)
            else:
                self._go_to_time(end.t - span)
            found = self._steps(end, step, whole)
            if len(found) >= count:
                return found[-count]
            if whole:
                break
            span *= _WIDER
        if first == self.start:
            return None
        return self.before(first, count - len(found), step)

    def _steps(self, end: Position, step: Callable[[], Any], whole: bool) -> list[Position]:
        # From here, which is one of them if all are wanted, to `end`.
        here = self.here(False)
        if here.order >= end.order:
            return []
        if not whole:
            self._near = _Mark(here, self.system.moment(self.base, self._marks[-1].moment), self._done)
        found = [here] if whole else []
        while step().reason == "step" and (here := self.here(False)).order < end.order:
            found.append(here)
        return found

    def at_time(self, t: int) -> Position:
        """Go to time `t`, in 1/16 cycle; the point that it is."""
        self._go_to_time(t)
        return self.here(False)

    def _go_to_time(self, t: int) -> None:
        marks = [mark for mark in self._marks if mark.position.t <= t]
        mark = marks[-1] if marks else self._marks[0]
        near = self._near
        if near is not None and mark.position.t < near.position.t <= t:
            mark = near
        self._back(mark)
        while (write := self.next_write()) is not None and write.t <= t:
            self.write_again()
        self.system.run_to(t)

    def beginnings(self, end: Position) -> Iterator[Position]:
        """Where to look for the last of something before `end`: nearer ones first, each gone to."""
        nearest = self._nearest(end).position
        for span in DENSE:
            if end.t - span > nearest.t:
                self._go_to_time(end.t - span)
                if (here := self.here(False)).order < end.order:  # a piece of the host's work is not cut
                    yield here
        for mark in reversed(self._marks):
            if mark.position.order < end.order:
                self._back(mark)
                yield mark.position

    def before_instruction(self, number: int) -> None:
        """Be in the last state that is kept from when not so many instructions were done."""
        marks = [mark for mark in self._marks if mark.position.instructions <= number]
        self._back(marks[-1] if marks else self._marks[0])
