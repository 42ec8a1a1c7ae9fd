"""What `perf kvm stat` says of a trace: how often and how long a vCPU was out of its guest, by reason."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import attrs

from vpmu_emu.report import Table
from vpmu_emu.traces.parse import Entry, Exit, Item, Lost, Problem

HEADS = ("VM-EXIT", "Samples", "Samples%", "Time%", "Min Time", "Max Time", "Avg Time")


@attrs.define
class Reason:
    """Exits of one reason that an entry followed; times in nanoseconds.

    Attributes:
        samples: how many; time: from exit to entry in all; low, high: the shortest and the longest.
        squares: sum of the squares of the times.
    """

    samples: int = 0
    time: int = 0
    low: int = 0
    high: int = 0
    squares: int = 0

    def add(self, ns: int) -> None:
        """One more."""
        self.low = ns if not self.samples else min(self.low, ns)
        self.high = max(self.high, ns)
        self.samples += 1
        self.time += ns
        self.squares += ns * ns

    @property
    def average(self) -> float:
        """Time of one."""
        return self.time / self.samples

    @property
    def spread(self) -> float:
        """Standard deviation of the average, as a part of it."""
        if self.samples < 2 or not self.time:
            return 0.0
        variance = max(0.0, (self.squares - self.time * self.average) / (self.samples - 1))
        return math.sqrt(variance / self.samples) / self.average


@attrs.define
class Stat:
    """Exits by reason, and what could not be used.

    Attributes:
        reasons: by name.
        open: exits that no entry followed, at the end or because of a gap.
        lost: gaps; problems: lines that cannot be read; read: those that can.
    """

    reasons: dict[str, Reason] = attrs.field(factory=dict)
    open: int = 0
    lost: list[Lost] = attrs.field(factory=list)
    problems: list[Problem] = attrs.field(factory=list)
    read: int = 0

    def rows(self) -> list[tuple[str, Reason]]:
        """The most frequent first."""
        return sorted(self.reasons.items(), key=lambda item: (-item[1].samples, item[0]))

    def table(self) -> Table:
        """The columns of perf."""
        samples = sum(reason.samples for reason in self.reasons.values())
        time = sum(reason.time for reason in self.reasons.values())
        rows = tuple(
            (
                name, f"{one.samples}", f"{100 * one.samples / samples:.2f}%",
                f"{100 * one.time / time if time else 0:.2f}%", _micro(one.low), _micro(one.high),
                f"{_micro(one.average)} ( +- {100 * one.spread:6.2f}% )",
            )
            for name, one in self.rows()
        )  # fmt: skip
        return Table("", HEADS, rows)

    def total(self) -> str:
        """The line below the table."""
        samples = sum(reason.samples for reason in self.reasons.values())
        time = sum(reason.time for reason in self.reasons.values())
        return f"Total Samples:{samples}, Total events handled time:{_micro(time)}."

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data, times in nanoseconds."""
        exits = {
            name: {
                "samples": one.samples, "time": one.time, "min": one.low, "max": one.high,
                "avg": one.average, "spread": one.spread,
            }
            for name, one in self.rows()
        }  # fmt: skip
        return {
            "schema": 1, "exits": exits, "open": self.open,
            "lost": [attrs.asdict(lost) for lost in self.lost],
            "problems": [attrs.asdict(problem) for problem in self.problems],
        }  # fmt: skip


def _micro(ns: float) -> str:
    return f"{ns / 1000:.2f}us"


def stat(items: Iterable[Item]) -> Stat:
    """Of a whole trace: each exit with the next entry of its thread; none across a gap on its CPU."""
    found = Stat()
    out: dict[int, Exit] = {}
    for item in items:
        if isinstance(item, Problem):
            found.problems.append(item)
            continue
        if isinstance(item, Lost):
            found.lost.append(item)
            gone = [pid for pid, one in out.items() if item.cpu in (None, one.where.cpu)]
            found.open += len(gone)
            for pid in gone:
                del out[pid]
            continue
        found.read += 1
        if isinstance(item, Exit):
            found.open += item.where.pid in out
            out[item.where.pid] = item
        elif isinstance(item, Entry):
            left = out.pop(item.where.pid, None)
            if left is not None and item.where.ns >= left.where.ns:
                found.reasons.setdefault(left.reason, Reason()).add(item.where.ns - left.where.ns)
            elif left is not None:
                found.open += 1
    found.open += len(out)
    return found
