"""A trace as a file; the suffix chooses the format."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vpmu_emu.errors import ConfigError, LoadError
from vpmu_emu.numerals import shown
from vpmu_emu.report import visible
from vpmu_emu.trace.text import lines


def _text(run: Any) -> str:
    found = lines(run.events(), run.model.core_khz, run.program.place, run.model.events)
    lost = run.lost()["trace"]
    head = f"CPU:0 [LOST {lost} EVENTS]\n" if lost else ""  # as the kernel's trace says it
    return head + "".join(f"{visible(line)}\n" for line in found)


FORMATS: dict[str, Callable[[Any], str]] = {".txt": _text, ".trace": _text}


def check_trace(path: str) -> None:
    """Whether a trace can be written to `path`, before anything runs; `-` is standard output.

    Raises:
        ConfigError: a suffix with no format, a folder that is not there.
    """
    if path == "-":
        return
    suffix = Path(path).suffix or ".txt"
    if suffix not in FORMATS:
        raise ConfigError("trace", f"no trace format is named {shown(suffix)}", " ".join(FORMATS))
    try:
        fits = not Path(path).is_dir() and Path(path).parent.is_dir()
    except OSError:
        fits = False
    if not fits:
        raise ConfigError("trace", f"cannot write {shown(path)}: no such folder, or a folder itself")


def write_trace(run: Any, path: str | Path) -> None:
    """Write the event ring of a System or a Result to `path`, or to standard output if that is `-`.

    Raises:
        ConfigError: as `check_trace`; LoadError: the file cannot be written.
    """
    check_trace(str(path))
    if str(path) == "-":
        sys.stdout.write(_text(run))
        return
    try:
        text = FORMATS[Path(path).suffix or ".txt"](run)
        Path(path).write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise LoadError(f"cannot write {path}: {error.strerror or error}") from None
