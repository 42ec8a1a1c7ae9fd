"""`isa/events.toml` as frozen rows: the events that a counter can count, and what makes them up."""

from __future__ import annotations

import tomllib
from typing import Any

import attrs

from vpmu_emu.data import isa_dir
from vpmu_emu.tables.names import Names

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


@attrs.frozen(kw_only=True)
class Event:
    """One event.

    Attributes:
        name: as in Intel's event lists; `aliases` are further names there.
        perf: generic name of the perf tool, "" if it has none.
        select, umask: bits 7:0 and 15:8 of a selector.
        lists: names of `LISTS` that have it.
        arch: bit in CPUID.0AH:EBX, None if the event is not architectural.
        fixed: number of the fixed counter that can count it, or None.
        fixed_source: it is the event which fixed counter `fixed` counts.
        plus, minus: names of `SOURCES`; the event's total is the sum of the first less the second.
        growth: the most it grows in one instruction, or "time".
        counters: mask of the general-purpose counters that can count it.
        doc: one line.
    """

    name: str
    aliases: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    perf: str = ""
    select: int
    umask: int
    lists: tuple[str, ...] = attrs.field(default=LISTS, converter=tuple)
    arch: int | None = None
    fixed: int | None = None
    fixed_source: bool = False
    plus: tuple[str, ...]
    minus: tuple[str, ...] = ()
    growth: int | str
    counters: int = 0xFF
    doc: str

    @property
    def code(self) -> int:
        """UMASK and EVENT as they stand in bits 15:0 of a selector."""
        return self.umask << 8 | self.select


def _event(row: dict[str, Any]) -> Event:
    source = row.pop("source")
    if isinstance(source, str):
        source = {"plus": [source]}
    return Event(plus=tuple(source["plus"]), minus=tuple(source.get("minus", ())), **row)


EVENTS: tuple[Event, ...] = tuple(
    _event(row) for row in tomllib.loads((isa_dir() / "events.toml").read_text())["event"]
)

_BY_CODE = {(name, event.code): event for event in EVENTS for name in event.lists}
_NAMES = {
    name: Names(
        "event",
        ((n, e) for e in EVENTS if name in e.lists for n in (e.name, *e.aliases, e.perf) if n),
    )
    for name in LISTS
}


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


def event_names(name: str = LISTS[0]) -> dict[str, int]:
    """Every name of list `name`, in lower case, with bits 15:0 of its selector."""
    return {n.lower(): event.code for n, event in _NAMES[name].items()}
