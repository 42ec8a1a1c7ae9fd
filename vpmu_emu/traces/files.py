"""A trace as a file; the suffix chooses the format."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from vpmu_emu.errors import ConfigError
from vpmu_emu.numerals import shown
from vpmu_emu.output import check_output, write_output
from vpmu_emu.report import visible
from vpmu_emu.traces.text import lines


def _text(run: Any) -> str:
    found = lines(run.events(), run.model.core_khz, run.program.place, run.model.events)
    lost = run.lost()["trace"]
    head = f"CPU:0 [LOST {lost} EVENTS]\n" if lost else ""  # as the kernel's trace says it
    return head + "".join(f"{visible(line)}\n" for line in found)


FORMATS: dict[str, Callable[[Any], str]] = {".txt": _text, ".trace": _text}


def check_trace(path: str, sources: Iterable[str | Path] = ()) -> None:
    """Whether a trace can be written to `path`, before anything runs; `-` is standard output.

    Raises:
        ConfigError: a suffix with no format; LoadError: as `check_output`.
    """
    suffix = Path(path).suffix or ".txt"
    if suffix not in FORMATS:
        raise ConfigError("trace", f"no trace format is named {shown(suffix)}", " ".join(FORMATS))
    check_output(path, sources)


def write_trace(run: Any, path: str | Path) -> None:
    """Write the event ring of a System or a Result to `path`, or to standard output if that is `-`.

    Raises:
        ConfigError, LoadError: as `check_trace`, or the file cannot be written.
    """
    check_trace(str(path))
    text = FORMATS[Path(path).suffix or ".txt"](run)
    write_output(path, text.encode("utf-8", "backslashreplace"))
