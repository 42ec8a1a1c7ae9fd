"""A trace as waveforms, VCD: registers, counters, exit reasons and who runs, for GTKWave and others."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

from vpmu_emu.traces.recorder import Recording
from vpmu_emu.traces.waves import changes

_BITS = {"guest": 1}  # the others have 64
_DATE = "since the start of the run"  # the same file from the same run
_PIECE = 1 << 20


def picoseconds(t: int, khz: int) -> int:
    """A time of 1/16 cycle, exact enough that two cycles are two times."""
    return t * 10**9 // (16 * khz)


def vcd(recording: Recording) -> Iterator[bytes]:
    """The file in pieces; needs pyvcd."""
    from vcd import VCDWriter

    # A viewer is told of every signal before the first value.
    words = {(one.scope, one.name): isinstance(one.value, str) for one in changes(recording)}
    with tempfile.TemporaryFile("w+", encoding="ascii", errors="backslashreplace") as file:
        with VCDWriter(file, timescale="1 ps", date=_DATE, check_values=False) as writer:
            signals = {
                (scope, name): writer.register_var(
                    ".".join(scope), name,
                    "string" if word else "reg", None if word else _BITS.get(name, 64),
                )
                for (scope, name), word in sorted(words.items())
            }
            last = 0
            for one in changes(recording):
                value = one.value.replace(" ", "_") if isinstance(one.value, str) else one.value
                last = max(last, picoseconds(one.t, recording.khz))
                writer.change(signals[one.scope, one.name], last, value)
        file.seek(0)
        while piece := file.read(_PIECE):
            yield piece.encode("ascii", "backslashreplace")
