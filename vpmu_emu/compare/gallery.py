"""A bug of the gallery is there if its guest is green without the switch and red with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs

from vpmu_emu.checks import FileReport, Outcome, check_program, read_plan, run_as_asked
from vpmu_emu.data import guests_dir
from vpmu_emu.load import load
from vpmu_emu.tables.bugs import Bug
from vpmu_emu.tables.modes import MODES

Ready = Callable[[Sequence[str]], None]


@attrs.frozen
class Found:
    """What became of a bug's guest.

    Attributes:
        bug: the row.
        without, with_it: the judgement of its guest.
    """

    bug: Bug
    without: FileReport
    with_it: FileReport

    @property
    def ok(self) -> bool:
        """Whether the switch, and nothing else, turns the guest red."""
        return self.without.ok and not self.with_it.error and self.with_it.failed > 0

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "name": self.bug.name, "ok": self.ok, "without": self.without.to_json(),
            "with": self.with_it.to_json(),
        }  # fmt: skip


def path_of(bug: Bug) -> Path:
    """Where its guest is."""
    return guests_dir() / bug.guest


def _judged(bug: Bug, switch: Sequence[str], ready: Ready | None) -> FileReport:
    path = str(path_of(bug))
    program = load(path)
    lines = [(e.line, e.text) for e in program.expectations if e.file == program.name]
    plan = read_plan(program.name, lines, program, tuple(MODES))
    words = list(switch)
    mode = words.pop(1) if words[:1] == ["--vpmu"] else bug.mode
    args = tuple(word for word in words if word != "--vpmu")
    plan = attrs.evolve(plan, modes=(bug.mode,), args=(*plan.args, *args))

    def runner(subject: Any, _: str, cpu: str | None, asked: Sequence[str]) -> Outcome:
        return run_as_asked(subject, mode, cpu, asked, ready=ready)

    return check_program(program, plan, runner)


def look(bug: Bug, ready: Ready | None = None) -> Found:
    """Run its guest without and with the switch.

    Raises:
        VpmuError: whatever is wrong with the table.
    """
    return Found(bug, _judged(bug, (), ready), _judged(bug, bug.switch, ready))
