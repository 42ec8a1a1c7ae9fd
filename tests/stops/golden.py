"""Guests that stop, and the text that each has to stop with."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from tests.conftest import ROOT
from vpmu_emu.load import load
from vpmu_emu.options import COMMAND, Options
from vpmu_emu.system import System

GUESTS = Path(__file__).parent / "guests"
HOST = ROOT / "guests" / "host"
_GOLDEN = re.compile(r"#([a-z,]*)= (.*)")


@attrs.frozen
class Case:
    """One guest, from its comments.

    Attributes:
        path: the file; modes: in which it runs; args: as behind `vpmu run PROG`.
        golden: (modes, line) in order; no modes: all.
    """

    path: Path
    modes: tuple[str, ...]
    args: tuple[str, ...]
    golden: tuple[tuple[tuple[str, ...], str], ...]

    def text(self, mode: str) -> str:
        """What it has to stop with in a mode."""
        return "\n".join(line for modes, line in self.golden if mode in (modes or self.modes))


def cases() -> Iterator[Case]:
    """Every guest."""
    for path in sorted(GUESTS.glob("*.s")):
        lines = path.read_text().splitlines()
        said = dict(line[3:].split(" ", 1) for line in lines if line.startswith("#~ "))
        found = [match.groups() for line in lines if (match := _GOLDEN.fullmatch(line))]
        golden = tuple((tuple(filter(None, modes.split(","))), text) for modes, text in found)
        yield Case(path, tuple(said["modes"].split()), tuple(shlex.split(said.get("args", ""))), golden)


def stopped(case: Case, mode: str, scratch: Path) -> tuple[System, Any]:
    """The system and its stop; files that it saves lie in `scratch`."""
    folders = (HOST, GUESTS / "host", GUESTS)
    names = {path.name: str(path) for folder in folders for path in folder.iterdir()}
    words = [names.get(word, str(scratch / word) if word == "SAVED" else word) for word in case.args]
    asked = COMMAND.make_context("args", ["-", *words]).params
    asked = {key: value for key, value in asked.items() if key != "prog" and value not in (None, ())}
    options = Options.of({"ram": 2, **{k: v for k, v in asked.items() if k != "ram"}, "vpmu": mode})
    options.check()
    system = System(load(case.path), options)
    return system, system.run()


def shown(text: str) -> str:
    """A stop's text without the folders of guests."""
    return re.sub(r"/[\w/.-]*/(?=\w+\.s\b)", "", text)


def written(case: Case, found: dict[str, str]) -> str:
    """The file of a case with the text of each mode: lines that all modes have, once."""
    kept = [line for line in case.path.read_text().splitlines() if not _GOLDEN.fullmatch(line)]
    texts = [found[mode].splitlines() for mode in case.modes]
    if all(text == texts[0] for text in texts):
        golden = [f"#= {line}" for line in texts[0]]
    else:
        same: dict[tuple[str, ...], list[str]] = {}
        for text in texts:
            same[tuple(text)] = [mode for mode in case.modes if found[mode].splitlines() == text]
        golden = [f"#{','.join(modes)}= {line}" for text, modes in same.items() for line in text]
    return "\n".join([*kept, *golden]) + "\n"  # behind, so that no line of the guest gets another number
