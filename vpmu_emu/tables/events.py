"""`isa/events.toml` as frozen rows: the events that a counter can count, and what makes them up."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from functools import cache
from typing import Any

import attrs

from vpmu_emu.data import isa_dir
from vpmu_emu.tables.names import Names

SYNONYMS = {
    "cpu-cycles": "cycles",
    "branch-instructions": "branches",
    "topdown-slots": "slots",
}

SOURCES = (
    "inst", "branch", "cond", "taken", "call", "ret", "indirect", "far", "load", "store", "nop",
    "brmiss", "llcref", "llcmiss",
    "cycles", "ref", "xclk", "slots",
)  # fmt: skip
"""Running totals that an event may be made of; the last four are time and stand alone."""

TIME_SOURCES = SOURCES[-4:]
N_ARCH = 8
LISTS = ("spr", "icx", "skx")
"""The event lists; a CPU model names its own. The first is what a name means where no CPU is at hand."""


def _words(words: str | list[str]) -> tuple[str, ...]:
    return (words,) if isinstance(words, str) else tuple(words)


@attrs.frozen(kw_only=True)
class Event:
    """One event.

    Attributes:
        name: as in Intel's event lists; `aliases` are further names there.
        perf: generic names of the perf tool, () if it has none.
        select, umask: bits 7:0 and 15:8 of a selector.
        lists: names of `LISTS` that have it.
        arch: bit in CPUID.0AH:EBX, None if the event is not architectural.
        fixed: number of the fixed counter that can count it, or None.
        fixed_source: it is the event which fixed counter `fixed` counts.
        plus, minus: names of `SOURCES`; the event's total is the sum of the first less the second.
        growth: the most it grows in one instruction, or "time".
        doc: one line.
    """

    name: str
    aliases: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    perf: tuple[str, ...] = attrs.field(default=(), converter=_words)
    select: int
    umask: int
    lists: tuple[str, ...] = attrs.field(default=LISTS, converter=tuple)
    arch: int | None = None
    fixed: int | None = None
    fixed_source: bool = False
    plus: tuple[str, ...]
    minus: tuple[str, ...] = ()
    growth: int | str
    doc: str

    @property
    def code(self) -> int:
        """UMASK and EVENT as they stand in bits 15:0 of a selector."""
        return self.umask << 8 | self.select

    @property
    def counters(self) -> int:
        """Mask of the general-purpose counters that can count it, the same in all its lists."""
        (mask,) = {constraint(self.code, name).counters for name in self.lists}
        return mask


MATCHES = {"event": 0xFF, "umask": 0xFFFF, "all": 0xFF84_FFFF, "event-all": 0xFF84_00FF}
"""Bits of a selector that a constraint compares."""


@attrs.frozen(kw_only=True)
class Constraint:
    """Which counters can count some events.

    Attributes:
        code: EVENT and UMASK as in bits 15:0 of a selector; `last` is the last of a range of them.
        match: a key of `MATCHES`.
        lists: names of `LISTS` that it holds for.
        pebs: of precise events only.
        counters: mask of the general-purpose counters.
        fixed, metric: number of a fixed counter or of a fraction of PERF_METRICS that will do too, or None.
        perf: name of the fraction in the perf tool.
    """

    code: int
    last: int = attrs.field()
    match: str = attrs.field(validator=attrs.validators.in_(MATCHES))
    lists: tuple[str, ...] = attrs.field(default=LISTS, converter=tuple)
    pebs: bool = False
    counters: int = attrs.field()
    fixed: int | None = None
    metric: int | None = None
    perf: str = ""

    @last.default
    def _one(self) -> int:
        return self.code

    @counters.default
    def _all(self) -> int:
        return 0xFF if self.code & 0xFF else 0

    def matches(self, config: int) -> bool:
        """Whether a selector's EVENT, UMASK, EDGE, INV and CMASK are what this is about."""
        return self.code <= config & MATCHES[self.match] <= self.last


def _event(row: dict[str, Any]) -> Event:
    source = row.pop("source")
    if isinstance(source, str):
        source = {"plus": [source]}
    return Event(plus=tuple(source["plus"]), minus=tuple(source.get("minus", ())), **row)


_ROWS = tomllib.loads((isa_dir() / "events.toml").read_text())
EVENTS: tuple[Event, ...] = tuple(_event(row) for row in _ROWS["event"])
CONSTRAINTS: tuple[Constraint, ...] = tuple(Constraint(**row) for row in _ROWS["constraint"])
_UNCONSTRAINED = Constraint(code=0, last=0xFF, match="event", counters=0xFF)

_BY_CODE = {(name, event.code): event for event in EVENTS for name in event.lists}


def _named(name: str) -> Iterator[tuple[str, Event]]:
    """Every name in list `name` and what it means there."""
    taken = set()
    for event in EVENTS:
        if name in event.lists:
            yield from ((n, event) for n in (event.name, *event.aliases))
            yield from ((n, event) for n in event.perf if n not in taken)
            taken |= set(event.perf)


_NAMES = {name: Names("event", _named(name)) for name in LISTS}


def constraint(config: int, name: str = LISTS[0], *, pebs: bool = False) -> Constraint:
    """What says which counters can count a selector's EVENT, UMASK, EDGE, INV and CMASK in list `name`."""
    rows = (row for row in CONSTRAINTS if name in row.lists and pebs >= row.pebs)
    found = sorted((row for row in rows if row.matches(config)), key=lambda row: not row.pebs)
    return found[0] if found else _UNCONSTRAINED


def metric_names(name: str = LISTS[0]) -> dict[str, int]:
    """The fractions of PERF_METRICS by name, with bits 15:0 of the selector that the kernel made up."""
    return {row.perf: row.code for row in CONSTRAINTS if row.metric is not None and name in row.lists}


def event_mask(name: str) -> int:
    """Bit k is set if event list `name` has event k of `EVENTS`."""
    return sum(1 << k for k, event in enumerate(EVENTS) if name in event.lists)


def event_by_code(code: int, name: str = LISTS[0]) -> Event | None:
    """What list `name` calls the event with this EVENT and UMASK (bits 15:0 of a selector), or None."""
    return _BY_CODE.get((name, code & 0xFFFF))


def event_by_name(event: str, name: str = LISTS[0]) -> Event:
    """The event of this name in list `name`: Intel's name, or perf's generic one; case does not matter.

    Raises:
        UnknownNameError: no such event; the message names the nearest.
    """
    return _NAMES[name][event]


def other_names(event: Event, name: str = LISTS[0]) -> list[str]:
    """What else list `name` calls an event: aliases of Intel's, generic names of perf."""
    perf = [n for n in event.perf if event_by_name(n, name) is event]
    return [*event.aliases, *perf]


NOT_COUNTED = "not counted by this model"


def event_text(config: int) -> str:
    """UMASK and EVENT of a selector as the perf tool writes a raw event."""
    return f"r{config & 0xFFFF:04x}"


def why_uncounted(config: int, name: str = LISTS[0]) -> str:
    """Why a general-purpose counter does not count what a selector of list `name` asks it for."""
    event = event_by_code(config, name)
    return f"{event.name} not on this counter" if event else NOT_COUNTED


def event_names(name: str = LISTS[0]) -> dict[str, int]:
    """Every name of list `name`, in lower case, with bits 15:0 of its selector."""
    return {n.lower(): event.code for n, event in _NAMES[name].items()}


@cache
def event_codes(events: str) -> dict[str, int]:
    """Names of event list `events` in lower case, with bits 15:0 of the selector."""
    names = event_names(events) | metric_names(events)
    for new, old in SYNONYMS.items():
        if old in names:
            names[new] = names[old]
    return names
