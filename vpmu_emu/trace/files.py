"""A trace as a file; the suffix chooses the format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vpmu_emu.errors import ConfigError, LoadError
from vpmu_emu.trace.text import lines


def _text(run: Any) -> str:
    found = lines(run.events(), run.model.tsc_khz, run.program.place)
    return "".join(f"{line}\n" for line in found)


FORMATS: dict[str, Callable[[Any], str]] = {".txt": _text, ".trace": _text}


def write_trace(run: Any, path: Path) -> None:
    """Write the event ring of a System or a Result to `path`.

    Raises:
        ConfigError: a suffix with no format.
        LoadError: the file cannot be written.
    """
    suffix = path.suffix or ".txt"
    if suffix not in FORMATS:
        raise ConfigError("trace", f"no trace format is named {suffix!r}", " ".join(FORMATS))
    try:
        path.write_text(FORMATS[suffix](run))
    except OSError as error:
        raise LoadError(f"cannot write {path}: {error}") from None
