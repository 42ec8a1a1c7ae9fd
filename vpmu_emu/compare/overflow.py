"""An overflow forced at every event of a guest's counted window: what the guest hears of it, mode by mode.

The counter is given its value right in front of the instruction that opens the window, as a debugger would;
then the guest goes on to its end, once for each place of the overflow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs

from vpmu_emu.asm import Program
from vpmu_emu.compare.lane import FIXED, GP, Lane, Look
from vpmu_emu.errors import VpmuError
from vpmu_emu.linux import trace_kinds as lk
from vpmu_emu.machine import ring as mk
from vpmu_emu.machine.state import END_OF_TIME, N_GP
from vpmu_emu.options import Options
from vpmu_emu.report import Table

MOST = 100  # places of an overflow unless --most says otherwise
MOST_MOST = 10_000
SEARCHED = 1_000_000  # instructions in which a window has to open
BEHIND = 100_000  # instructions that a guest may do behind its window before it is given up
_PIECE = 4096
_VECTOR = 0xFF


@attrs.frozen
class Window:
    """The first counted window of a guest in one mode.

    Attributes:
        counter: which one.
        opens: the number of the instruction that opens it; rip, line: where that is.
        closes: the number of the instruction behind which it is closed; `closed`: whether it is.
        events: what the counter counts in it.
        end: instructions of the whole run, if nothing overflows.
    """

    counter: str
    opens: int
    rip: int
    line: str
    closes: int
    closed: bool
    events: int
    end: int


@attrs.frozen
class Point:
    """One overflow in one mode.

    Attributes:
        event: the event of the window that wraps the counter, from 1 on.
        status: GLOBAL_STATUS when the first PMI was taken; if none was, behind the instruction that closes.
        pmis: PMIs that the guest's local APIC delivered, to its end.
        rip, line: what the first of them interrupted; None if it was never taken.
        stop: how the run ended; "limit" if it was given up.
    """

    event: int
    status: int
    pmis: int
    rip: int | None
    line: str
    stop: str


def _index(counter: str) -> int:
    i = int(counter.removeprefix(FIXED if counter.startswith(FIXED) else GP))
    return N_GP + i if counter.startswith(FIXED) else i


def load_counter(lane: Lane, counter: str, value: int) -> None:
    """Give a counter that is off another value, wherever it is kept at the moment."""
    system, i = lane.system, _index(counter)
    width = 48
    if system.has_host:
        pmu = system.S.vcpus[0].pmu
        width = int(pmu.width)
        if not int(pmu.guest_ctx_loaded):
            pmc = pmu.pmcs[i]
            pmc.counter, pmc.emulated_counter = value & (1 << width) - 1, 0
            return
    system.core.pmu.ctr_base[i] = value & (1 << width) - 1


def _taken(lane: Lane, since: int) -> Iterator[tuple[int, int]]:
    """(time, interrupted rip) of each PMI that the guest took."""
    asked = -1
    for event in lane.events(since):
        kind = int(event["kind"])
        if kind == mk.TR_PMI_RAISE and not lane.system.has_host and int(event["c"]):
            asked = int(event["a"])
        elif kind == lk.TR_PMI_INJECT and int(event["b"]):
            asked = int(event["a"])
        elif asked >= 0 and (
            (kind == mk.TR_IRQ and int(event["a"]) == asked & _VECTOR)
            or (kind == mk.TR_NMI and asked >> 8 & 7 == 4)
        ):
            yield int(event["t"]), int(event["rip"])
            asked = -1


class Sweep:
    """The overflows of one guest in one mode, with one skid.

    Args:
        program: the guest.
        options: of the run.
        counter: the one whose window it is; "" for the first that opens.
        most: how many places of an overflow at the most.

    Raises:
        VpmuError: whatever is wrong with program or options; no window opens.
    """

    def __init__(
        self,
        program: Program,
        options: Options,
        counter: str = "",
        most: int = MOST,
        ready: Callable[[], None] | None = None,
    ) -> None:
        self.lane = Lane(options.vpmu, program, options, ready)
        self.most = most
        self.longest = 4 * most + 64  # instructions of a window, until it is cut
        self.window = self._window(counter)

    # --- the window ---------------------------------------------------------------------------------
    def _window(self, counter: str) -> Window:
        lane = self.lane
        lane.to(0)
        first = lane.look(0)
        if counter and counter not in first.counters:
            there = " ".join(first.counters) or "none"
            raise VpmuError(f"counter: there is no {counter} in mode {lane.name} (allowed: {there})")
        found = self._opens(counter)
        if found is None:
            what = f"{counter} is" if counter else "no counter is"
            raise VpmuError(
                f"{lane.system.program.name}: {what} {'never ' if counter else 'ever '}on in its first "
                f"{min(SEARCHED, lane.system.instructions):,} instructions in mode {lane.name}"
            )
        opens, counter = found
        lane.to(opens - 1)
        self._saved = lane.save()
        before = lane.look(opens - 1)
        load_counter(lane, counter, 0)
        at, value, closed = opens - 1, 0, False
        head = lane.head
        while lane.stop is None and at < opens + self.longest:
            at += 1
            lane.to(at)
            if head != lane.head or at == opens + self.longest:
                head = lane.head
                look = lane.look(at)
                value = look.counters[counter]
                if at > opens and counter not in look.running:
                    closed = True
                    break
        closes = at
        lane.to(at + BEHIND)
        place = lane.system.program.place(before.rip)
        end = lane.system.instructions
        return Window(counter, opens, before.rip, place, closes, closed, value, end)

    def _opens(self, counter: str) -> tuple[int, str] | None:
        """(number of the instruction that turns a counter on, which one); the run stands before it."""
        lane = self.lane

        def opened(look: Look) -> str:
            if counter:
                return counter if counter in look.running else ""
            return next((name for name in look.counters if name in look.running), "")

        at = 0
        while at < SEARCHED and lane.stop is None:
            saved, head = lane.save(), lane.head
            lane.to(at + _PIECE)
            kinds = {int(event["kind"]) for event in lane.events(head)}
            writes = kinds & {mk.TR_GUEST_WRMSR, mk.TR_GUEST_WRMSR_BLIND}
            if not writes and not lane.lost(head):
                at += _PIECE
                continue
            lane.restore(saved)
            for k in range(at + 1, at + _PIECE + 1):
                head = lane.head
                lane.to(k)
                if head != lane.head:
                    name = opened(lane.look(k))
                    if name:
                        lane.restore(saved)
                        return k, name
                if lane.stop is not None:
                    return None
            at += _PIECE
        return None

    # --- points -------------------------------------------------------------------------------------
    @property
    def events(self) -> range:
        """The places of an overflow."""
        return range(1, min(self.window.events, self.most) + 1)

    def point(self, event: int) -> Point:
        """Force the overflow at one of the window's events."""
        lane, window = self.lane, self.window
        self._begin(event)
        head, before = lane.head, int(lane.system.core.stats.pmis)
        lane.to(window.closes + _PIECE)
        taken = list(_taken(lane, head))  # before the ring of the trace drops it
        lane.to(window.end + BEHIND)
        taken = taken or list(_taken(lane, head))
        pmis = int(lane.system.core.stats.pmis) - before
        stop = lane.stop.reason if lane.stop is not None else "limit"
        rip = taken[0][1] if taken else None
        line = lane.system.program.place(rip) if rip is not None else ""
        self._begin(event)
        if taken:
            lane.system.E.t_limit = taken[0][0]
            lane.to(window.end + BEHIND)
            lane.system.E.t_limit = END_OF_TIME
        else:
            lane.to(window.closes)
        status = lane.look(event).status
        return Point(event, status, pmis, rip, line, stop)

    def _begin(self, event: int) -> None:
        self.lane.restore(self._saved)
        load_counter(self.lane, self.window.counter, -event)


@attrs.frozen
class Swept:
    """Every overflow of a guest: skid by skid, and in it mode by mode."""

    guest: str
    windows: dict[str, Window]
    points: dict[str, dict[str, list[Point]]]
    most: int

    def to_json(self) -> dict[str, Any]:
        """As plain data (docs/sweep_overflow.md)."""
        return {
            "schema": 1, "guest": self.guest, "most": self.most,
            "windows": {mode: attrs.asdict(window) for mode, window in self.windows.items()},
            "points": {
                skid: {mode: [attrs.asdict(point) for point in points] for mode, points in by_mode.items()}
                for skid, by_mode in self.points.items()
            },
        }  # fmt: skip


def sweep(
    program: Program, each: Sequence[Options], skids: Sequence[str], counter: str = "", most: int = MOST,
    *, ready: Callable[[], None] | None = None, progress: Callable[[int, int], None] = lambda *_: None,
) -> Swept:
    """Force every overflow, in every mode, with every skid.

    Args:
        program: the guest.
        each: options of a run in each mode.
        skids: OVERFLOW:RECOGNITION, in cycles.
        counter, most: as for `Sweep`; the counter is that of the first mode.
        progress: called with places done, and places in all as far as that is known.

    Raises:
        VpmuError: as `Sweep`.
    """
    windows: dict[str, Window] = {}
    points: dict[str, dict[str, list[Point]]] = {}
    done = 0
    for skid in skids:
        points[skid] = {}
        for options in each:
            one = Sweep(program, attrs.evolve(options, pmi_skid=skid), counter, most, ready)
            counter = one.window.counter
            windows.setdefault(options.vpmu, one.window)
            found = []
            for event in one.events:
                found.append(one.point(event))
                done += 1
                progress(done, len(one.events) * len(each) * len(skids))
            points[skid][options.vpmu] = found
    return Swept(program.name, windows, points, most)


def _cell(point: Point) -> str:
    where = "-" if point.rip is None else f"{point.rip:#x}"
    stop = "" if point.stop == "debug-exit" else f" {point.stop}"
    return f"{point.status:#x} {point.pmis} {where}{stop}"


def tables(swept: Swept) -> Iterator[Table]:
    """For a screen: the windows, and for each skid a table of status, PMIs and sampled rip."""
    rows = []
    for mode, window in swept.windows.items():
        cut = "" if window.closed else ", not closed there"
        rows.append((mode, window.counter, window.opens, window.line or f"{window.rip:#x}",
                     f"{window.closes:,}{cut}", window.events))  # fmt: skip
    heads = ("mode", "counter", "opened by instruction", "at", "looked at until instruction", "events")
    yield Table(swept.guest, heads, tuple(rows))
    for skid, by_mode in swept.points.items():
        longest = max(map(len, by_mode.values()))
        lines = [
            (k + 1, *(_cell(points[k]) if k < len(points) else None for points in by_mode.values()))
            for k in range(longest)
        ]
        title = f"--pmi-skid {skid}: GLOBAL_STATUS, PMIs, rip that the first one interrupted"
        yield Table(title, ("overflow at event", *by_mode), tuple(lines))


def notes(swept: Swept) -> Iterator[str]:
    """What bounds the sweep, and where the modes are not like the first one."""
    most = max(window.events for window in swept.windows.values())
    if most > swept.most:
        yield f"the first {swept.most:,} of {most:,} events (--most)"
    for skid, by_mode in swept.points.items():
        (first, own), *others = by_mode.items()
        for mode, points in others:
            pairs = list(zip(own, points, strict=False))
            differ = sum(a != b for a, b in pairs)
            if differ:
                yield f"--pmi-skid {skid}: {mode} is not as {first} at {differ} of {len(pairs)} places"
