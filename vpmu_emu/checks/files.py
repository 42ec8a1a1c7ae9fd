"""Guests in files are checked one after the other; one that cannot be read does not end the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from vpmu_emu.checks.judge import FileReport, check_program, run_as_asked
from vpmu_emu.checks.plan import Plan, find_guests, read_plan
from vpmu_emu.errors import VpmuError
from vpmu_emu.load import load
from vpmu_emu.options import Options
from vpmu_emu.report import Table, html, plain
from vpmu_emu.tables.modes import MODES

READING = (VpmuError, OSError, UnicodeError, RecursionError, MemoryError)


@attrs.frozen(repr=False)
class CheckReport:
    """What became of all guests; true if every expectation of each holds.

    Attributes:
        files: one report each, in order.
        broken: some could not be read or run at all.
    """

    files: tuple[FileReport, ...]
    broken: bool = False

    def __bool__(self) -> bool:
        return self.ok

    @property
    def ok(self) -> bool:
        """Nothing failed, and there was something to fail in each guest."""
        return all(report.ok for report in self.files)

    @property
    def expectations(self) -> int:
        """How many were judged: one line in three modes is three."""
        return sum(len(report.verdicts) for report in self.files)

    @property
    def failed(self) -> int:
        """How much does not hold."""
        return sum(report.failed for report in self.files)

    def to_json(self) -> dict[str, Any]:
        """The report as plain data, as `vpmu check --json` prints it."""
        return {
            "schema": 1, "ok": self.ok, "files": [report.to_json() for report in self.files],
            "expectations": self.expectations, "failed": self.failed,
        }  # fmt: skip

    def table(self) -> Table:
        """A row for each guest, with the first thing that is wrong with it."""
        rows = []
        for report in self.files:
            bad = [str(verdict) for verdict in report.verdicts if not verdict.ok]
            bad += [*report.stops, *report.blind, report.error]
            held = sum(v.ok for v in report.verdicts)
            modes = " ".join(dict.fromkeys(v.mode for v in report.verdicts))
            first = next(filter(None, bad), "").splitlines()
            cells = (report.file, "ok" if report.ok else "FAILED", held, len(report.verdicts), modes)
            rows.append((*cells, first[0] if first else ""))
        return Table("", ("guest", "", "hold", "of", "modes", "first that does not"), tuple(rows))

    def __repr__(self) -> str:
        said = "ok" if self.ok else f"{self.failed} failed" if self.failed else "failed"
        return f"<CheckReport: {len(self.files)} guests, {self.expectations} expectations, {said}>"

    def __str__(self) -> str:
        return plain(self.table())

    def _repr_html_(self) -> str:
        return html([self.table()])


def check_files(
    paths: Sequence[str | Path],
    *,
    perturb: bool = False,
    inject: Sequence[str] = (),
    without: Sequence[Any] = (),
    ready: Callable[[Sequence[str]], None] | None = None,
    loader: Callable[[str], Any] = load,
) -> Iterator[tuple[FileReport, bool]]:
    """Run guests against the `#: expect` lines in them: the report of each, and whether it is broken.

    Args:
        paths: files, or folders with guests.
        perturb: alter every expected constant; each must turn red.
        inject, without: deliberate bugs, and patches of the series to leave out, as for `vpmu run`.
        ready: called with modes before their compiled code is needed.
        loader: makes a program of a path.

    Raises:
        VpmuError: a name of a bug, a patch or a file that there is not; of a guest only its report tells.
    """
    asked = Options.of({"inject": inject, "without": without})
    asked.check_values()  # a wrong name is told before anything compiles
    runner = partial(run_as_asked, inject=asked.inject, without=asked.without, ready=ready)
    for path in find_guests(paths):
        try:
            program, plan = load_plan(path, loader)
            asked.check_some_mode(plan.modes)
            yield check_program(program, plan, runner, perturb=perturb), False
        except READING as error:
            if isinstance(error, BrokenPipeError):
                raise
            yield FileReport(str(path), error=_one_sentence(path, error)), True


def load_plan(path: Path, loader: Callable[[str], Any] = load) -> tuple[Any, Plan]:
    """A guest and what its comments ask for."""
    if path.exists() and not path.is_file():
        raise VpmuError(f"{path}: not a file")  # nobody waits for a FIFO
    program = loader(str(path))
    lines = [(e.line, e.text) for e in program.expectations if e.file == program.name]
    return program, read_plan(program.name, lines, program, tuple(MODES))


def _one_sentence(path: Path, error: Exception) -> str:
    if isinstance(error, VpmuError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename or path}: {error.strerror or error}"
    if isinstance(error, UnicodeError):
        return f"{path}: not a text file"
    return f"{path}: " + ("nested too deeply" if isinstance(error, RecursionError) else "not enough memory")
