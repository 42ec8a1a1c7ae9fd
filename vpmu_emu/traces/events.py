"""A trace as values: each event with its words, its time and its place; a client of a finished run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from vpmu_emu.errors import ConfigError
from vpmu_emu.linux.trace_kinds import LINUX_KINDS
from vpmu_emu.machine.ring import MACHINE_KINDS
from vpmu_emu.numerals import shown
from vpmu_emu.options import did_you_mean
from vpmu_emu.report import Table, html
from vpmu_emu.traces.files import write_trace
from vpmu_emu.traces.recorder import Recording
from vpmu_emu.traces.text import Words

KINDS: dict[int, str] = {**MACHINE_KINDS, **LINUX_KINDS}
SHOWN = 50  # rows in a notebook


@attrs.frozen
class TraceEvent:
    """One event.

    Attributes:
        cycle: when, in cycles of its core.
        cpu: which core.
        kind: as `Trace.kinds` names them: guest_wrmsr, vm_exit, overflow, …
        rip: where the program was.
        place: file:line there, "" outside of its source.
        a, b, c: what docs/map.md's machine/ring.py and linux/trace_kinds.py say of its kind.
        text: all of that in the words of the kernel's trace points.
    """

    cycle: int
    cpu: int
    kind: str
    rip: int
    place: str
    a: int
    b: int
    c: int
    text: str

    def __str__(self) -> str:
        return self.text


@attrs.frozen(repr=False, eq=False)
class Trace:
    """The events of a run, oldest first: a sequence.

    Attributes:
        result: what the run did.
        events: all, or those that `only` left.
        lost: how many are missing among all.
        recording: all of them, for a file.
    """

    result: Any
    events: tuple[TraceEvent, ...]
    lost: int
    recording: Recording

    @classmethod
    def of(cls, result: Any, recording: Recording | None = None) -> Trace:
        """The trace of a Result that was recorded; else the last events, which it has kept."""
        recording = recording or Recording.of(result)
        words = Words(recording.place, recording.names)
        several = recording.cpus > 1
        found = []
        for t, kind, cpu, rip, a, b, c in recording.events.tolist():
            name = KINDS.get(kind, f"event_{kind}")
            text = (f"[{cpu:03}] " if several else "") + words.of(cpu, kind, rip, a, b, c)
            found.append(TraceEvent(t >> 4, cpu, name, rip, recording.place(rip), a, b, c, text))
        return cls(result, tuple(found), recording.lost, recording)

    def __len__(self) -> int:
        return len(self.events)

    def __iter__(self) -> Iterator[TraceEvent]:
        return iter(self.events)

    def __getitem__(self, index: int) -> TraceEvent:
        return self.events[index]

    @property
    def kinds(self) -> dict[str, int]:
        """How many events there are of each kind, the most first."""
        found: dict[str, int] = {}
        for event in self.events:
            found[event.kind] = found.get(event.kind, 0) + 1
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def only(self, *kinds: str) -> Trace:
        """The events of these kinds.

        Raises:
            ConfigError: no kind of event has such a name.
        """
        for kind in kinds:
            if kind not in KINDS.values():
                hint = did_you_mean(kind, KINDS.values())
                names = " ".join(dict.fromkeys(KINDS.values()))
                raise ConfigError("kind", f"no event is named {shown(kind)}{hint}", names)
        return attrs.evolve(self, events=tuple(e for e in self.events if e.kind in kinds))

    def to_dicts(self) -> list[dict[str, Any]]:
        """A dictionary for each event, as pandas.DataFrame() and others take them."""
        return [attrs.asdict(event) for event in self.events]

    def save(self, path: str | Path) -> None:
        """Write the whole trace of the run in the format of its suffix, as `vpmu run --trace` does.

        Raises:
            ConfigError, LoadError: no such format, or the file cannot be written.
        """
        write_trace(self.recording, path)

    def __str__(self) -> str:
        return "\n".join(f"{event.cycle}: {event.text}" for event in self.events)

    def __repr__(self) -> str:
        most = ", ".join(f"{n:,} {kind}" for kind, n in list(self.kinds.items())[:4])
        lost = f", {self.lost:,} lost" if self.lost else ""
        return f"<Trace: {len(self.events):,} events{lost}: {most}>"

    def _repr_html_(self) -> str:
        rows = tuple((e.cycle, e.cpu, e.kind, e.place, e.text) for e in self.events[:SHOWN])
        more = len(self.events) - len(rows)
        title = repr(self)[1:-1] + (f"; the first {SHOWN}" if more > 0 else "")
        return html([Table(title, ("cycle", "CPU", "kind", "place", "event"), rows)])
