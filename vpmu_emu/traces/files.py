"""A trace as a file; the suffix chooses the format."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs

from vpmu_emu.errors import ConfigError
from vpmu_emu.numerals import shown
from vpmu_emu.options import did_you_mean
from vpmu_emu.output import check_output, write_output
from vpmu_emu.traces.dat import trace_dat
from vpmu_emu.traces.kernel_text import file_text, report_text
from vpmu_emu.traces.parquet_file import parquet
from vpmu_emu.traces.perfetto_file import perfetto
from vpmu_emu.traces.points import told
from vpmu_emu.traces.recorder import Recorder, Recording
from vpmu_emu.traces.vcd_file import vcd


def _bytes(text: Iterable[str]) -> Iterator[bytes]:
    return (line.encode("utf-8", "backslashreplace") for line in text)


@attrs.frozen
class Format:
    """A format of traces.

    Attributes:
        pieces: makes the file's bytes, in pieces.
        needs: a module of the extra `trace`, "" none.
        samples: whether it draws counters, which the events do not have.
    """

    pieces: Callable[[Recording], Iterable[bytes]]
    needs: str = ""
    samples: bool = False


# A module of an extra, and the package that has it.
PACKAGES = {"vcd": "pyvcd", "perfetto.protos": "perfetto", "pyarrow": "pyarrow"}
FORMATS: dict[str, Format] = {
    ".txt": Format(lambda r: _bytes(report_text(told(r), r.cpus))),
    ".trace": Format(lambda r: _bytes(file_text(told(r)))),
    ".dat": Format(lambda r: trace_dat(told(r), r.cpus)),
    ".vcd": Format(vcd, needs="vcd", samples=True),
    ".perfetto-trace": Format(perfetto, needs="perfetto.protos", samples=True),
    ".parquet": Format(parquet, needs="pyarrow"),
}


def check_trace(path: str, sources: Iterable[str | Path] = ()) -> None:
    """Whether a trace can be written to `path`, before anything runs; `-` is standard output, and text.

    Raises:
        ConfigError: a suffix with no format, or one whose package is not installed; LoadError: as
            `check_output`.
    """
    suffix = _suffix(path)
    if suffix not in FORMATS:
        hint = did_you_mean(suffix, FORMATS)
        raise ConfigError("trace", f"no trace format is named {shown(suffix)}{hint}", " ".join(FORMATS))
    needs = FORMATS[suffix].needs
    if needs and not _installed(needs):
        plain = " ".join(name for name, known in FORMATS.items() if not known.needs)
        what = f"{suffix} needs {PACKAGES[needs]}: pip install 'vpmu-emu[trace]'"
        raise ConfigError("trace", what, f"without it {plain}")
    check_output(path, sources)


def recorder(system: Any, path: str | Path) -> Recorder:
    """What keeps the trace of a machine from now on, for a file of this name."""
    return Recorder(system, samples=FORMATS[_suffix(path)].samples)


def _suffix(path: str | Path) -> str:
    return Path(path).suffix.lower() or ".txt"


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a part of it is there, or none of it is wanted
        return False


def write_trace(run: Any, path: str | Path) -> None:
    """Write the trace of a run to `path`, or to standard output if that is `-`.

    Args:
        run: a Recorder or Recording has all events; of a System or a Result the ring has the last ones.
        path: its suffix says the format.

    Raises:
        ConfigError, LoadError: as `check_trace`, or the file cannot be written.
    """
    check_trace(str(path))
    if isinstance(run, Recorder):
        run = run.recording()
    recording = run if isinstance(run, Recording) else Recording.of(run)
    write_output(path, FORMATS[_suffix(path)].pieces(recording))
