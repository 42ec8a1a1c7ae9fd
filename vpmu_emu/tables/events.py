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
    "cycles", "ref", "slots",
)  # fmt: skip
"""Running totals that an event may be made of; the last three are time and stand alone."""

TIME_SOURCES = SOURCES[-3:]
N_ARCH = 8


@attrs.frozen(kw_only=True)
class Event:
    """One event.

    Attributes:
        name: as in Intel's event lists; `aliases` are further names there.
        perf: generic name of the perf tool, "" if it has none.
        select, umask: bits 7:0 and 15:8 of a selector.
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

_BY_CODE = {event.code: event for event in EVENTS}
_NAMES = Names("event", ((n, e) for e in EVENTS for n in (e.name, *e.aliases, e.perf) if n))


def event_by_code(code: int) -> Event | None:
    """The event with this EVENT and UMASK (bits 15:0 of a selector), or None."""
    return _BY_CODE.get(code & 0xFFFF)


def event_by_name(name: str) -> Event:
    """The event of this name: Intel's, or perf's generic one; case does not matter.

    Raises:
        UnknownNameError: no such event; the message names the nearest.
    """
    return _NAMES[name]
