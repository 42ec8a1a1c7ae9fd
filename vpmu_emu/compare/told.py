"""A first difference in words and as plain data: where, what, which handler, which row explains it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import attrs

from vpmu_emu.compare.diff import Comparison, Difference, Differs
from vpmu_emu.compare.facts import Side, explained, handlers_of, step_of
from vpmu_emu.compare.lane import Lane
from vpmu_emu.system import Stop
from vpmu_emu.tables.divergences import Divergence

SHOWN = 6  # things that differ, of which more are only counted
PAGE = "docs/divergences.md"


def _sides(found: Difference) -> list[Side]:
    return [
        Side(found.lanes[k], found.before[k], found.after[k], found.since[k], found.start[k])
        for k in (0, 1)
    ]


def _shown(value: Any) -> str:
    if value is None:
        return "goes on"
    if isinstance(value, Stop):
        return str(value).partition("\n")[0]
    return f"{value:,}" if -10_000 < value < 10_000 else f"{value:#x}"


def _place(found: Difference) -> str:
    step = step_of(found)
    if found.at == 0:
        return "before the first instruction"
    if step is None:
        a, b = (lane.system.program.place(look.rip) or f"{look.rip:#x}"
                for lane, look in zip(found.lanes, found.before, strict=True))  # fmt: skip
        return f"instruction {found.at:,}, at {a} and at {b}"
    place = f" ({step.place})" if step.place else ""
    forced = "forced emulation prefix, " if step.forced else ""
    return f"instruction {found.at:,}, {forced}{step.text} at {step.rip:#x}{place}"


def _rows(found: Difference) -> list[Divergence]:
    return list({row.name: row for row, _ in explained(found)}.values())


def deciders(found: Difference) -> tuple[str, ...]:
    """The kernel's functions that decided it: the row's, else those that had the instruction in hand."""
    named = tuple(name for row in _rows(found) for name in row.functions)
    in_hand = tuple(name for side in _sides(found) for name in handlers_of(side))
    return tuple(dict.fromkeys(named or in_hand))


def _thing(thing: Differs) -> str:
    if thing.kind == "memory":
        return f"memory at {thing.name}"
    return thing.name


def lines(found: Difference) -> Iterator[str]:
    """The difference for a screen."""
    yield f"first difference: {_place(found)}"
    names = [lane.name for lane in found.lanes]
    width = max(map(len, names))
    for thing in found.things[:SHOWN]:
        if thing.kind == "memory":
            yield f"  {_thing(thing)} differs"
            continue
        yield f"  {_thing(thing)}"
        for name, value in zip(names, (thing.a, thing.b), strict=True):
            yield f"    {name:{width}}  {_shown(value)}"
    more = len(found.things) - SHOWN
    if more > 0:
        yield f"  and {more} more"
    for name, side in zip(names, _sides(found), strict=True):
        handlers = handlers_of(side)
        if handlers:
            yield f"handled in {name} by: {', '.join(handlers)}"
    rows = _rows(found)
    for row in rows:
        yield f"row {row.name} of {PAGE}: {row.condition or row.differs}"
        if row.condition:
            yield f"  {row.modes + ': ' if row.modes else ''}{row.differs}"
        if row.decided:
            yield f"  decided by: {row.decided}"
    if not rows:
        yield f"no row of {PAGE} explains it: a difference that none predicts is a bug"


def end(lanes: tuple[Lane, ...]) -> str:
    """Two runs without a difference."""
    a, b = lanes
    stop = a.stop
    assert stop is not None
    limit = "; that is the limit (--max-insns)" if stop.reason == "max-insns" else ""
    both = f"{a.name} and {b.name}"
    return f"no difference in {a.system.instructions:,} instructions: {both} end by {stop}{limit}"


def to_json(found: Difference | None, lanes: tuple[Lane, ...]) -> dict[str, Any]:
    """As plain data (docs/diff.md)."""
    values: dict[str, Any] = {
        "schema": 1, "runs": [lane.name for lane in lanes],
        "instructions": [lane.system.instructions for lane in lanes], "differs": found is not None,
    }  # fmt: skip
    if found is None:
        return values | {"stop": [str(lane.stop) for lane in lanes]}
    step = step_of(found)
    return values | {
        "at": found.at,
        "rip": [look.rip for look in found.before],
        "instruction": step.text if step is not None else None,
        "line": (step.place or None) if step is not None else None,
        "things": [
            {"kind": t.kind, "name": t.name, "values": [_plain(t.a), _plain(t.b)]} for t in found.things
        ],
        "handlers": [handlers_of(side) for side in _sides(found)],
        "rows": [row.name for row in _rows(found)],
        "decided_by": list(deciders(found)),
    }


@attrs.frozen(repr=False)
class DiffReport:
    """Where two runs of one guest part, or that they do not.

    Attributes:
        text: what `vpmu diff` prints.
        values: what it prints with --json (docs/diff.md).
    """

    text: str
    values: dict[str, Any] = attrs.field(eq=json.dumps)

    @classmethod
    def of(cls, comparison: Comparison) -> DiffReport:
        """What becomes of two runs."""
        found = comparison.first()
        text = "\n".join(lines(found)) if found is not None else end(comparison.lanes)
        return cls(text, to_json(found, comparison.lanes))

    @property
    def differs(self) -> bool:
        """Whether they part."""
        return bool(self.values["differs"])

    @property
    def at(self) -> int | None:
        """The number of the instruction after which they do, None if they never do."""
        return self.values.get("at")

    @property
    def rows(self) -> tuple[str, ...]:
        """The names of the rows of docs/divergences.md that explain it."""
        return tuple(self.values.get("rows", ()))

    @property
    def decided_by(self) -> tuple[str, ...]:
        """The kernel's functions that decided it."""
        return tuple(self.values.get("decided_by", ()))

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return self.values

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        runs = " and ".join(self.values["runs"])
        if not self.differs:
            return f"<DiffReport: {runs} do not differ>"
        rows = ", ".join(self.rows) or "no row explains it"
        return f"<DiffReport: {runs} differ at instruction {self.at:,}: {rows}>"


def _plain(value: Any) -> Any:
    return str(value).partition("\n")[0] if isinstance(value, Stop) else value
