"""What may follow what has been typed: commands, symbols, MSRs and registers, by what a command takes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable

from vpmu_emu.debug.repl import OPTIONS, Repl, path_of
from vpmu_emu.debug.sections import KIND_NAMES, SECTIONS
from vpmu_emu.debug.session import CAUGHT
from vpmu_emu.debug.verbs import BY_NAME, TOPICS, VERBS, verb_of
from vpmu_emu.errors import VpmuError
from vpmu_emu.tables.exits import EXITS
from vpmu_emu.tables.msrs import NAMES

_WORD = re.compile(r"[\w$.:/+-]*$")
MOST = 500  # candidates


def candidates(repl: Repl, line: str) -> tuple[int, list[str]]:
    """(where in `line` the word begins that is being typed, what it may become), sorted."""
    found = _WORD.search(line)
    start = found.start() if found else len(line)
    word = line[start:]
    before = line[:start].split()
    if not before:
        names = [verb.name for verb in VERBS] if not word else list(BY_NAME)
        return start, _begun(word, names)
    if "if" in before:
        return start, _begun(word, _expression(repl))
    try:
        verb = verb_of(before[0].partition("/")[0])
    except VpmuError:
        return start, []
    if verb.takes == "file":
        whole = line[len(line) - len(line.lstrip()) :].partition(" ")[2].lstrip()
        return len(line) - len(whole), _files(whole)
    take = _TAKES.get(verb.takes)
    return start, _begun(word, take(repl, before[1:])) if take else []


def _begun(word: str, names: Iterable[str]) -> list[str]:
    low = word.lower()
    found = {name for name in names if name.lower().startswith(low)}
    if not found and len(word) > 2:
        found = {name for name in names if low in name.lower()}
    return sorted(found)[:MOST]


def _symbols(repl: Repl) -> list[str]:
    program = repl.session.program
    return [name for name in program.symbols if name not in program.equates]


def _expression(repl: Repl) -> list[str]:
    session = repl.session
    counters = [name for name in session.pmu() if not name.startswith("IA32")]
    registers = [*session.registers(), *(f"${name}" for name in session.registers())]
    functions = ["mem8(", "mem16(", "mem32(", "mem64("]
    return [*registers, *counters, *functions, *session.program.symbols]


def _places(repl: Repl, _: list[str]) -> list[str]:
    program = repl.session.program
    files = sorted({line.file.rpartition("/")[2] for line in program.lines if line.kind != "data"})
    return [*_symbols(repl), *(f"{file}:" for file in files), "tsc", "if"]


def _watch(repl: Repl, words: list[str]) -> list[str]:
    if not words:
        return ["msr", "mem", *repl.session.program.symbols]
    if words[0] == "msr" and len(words) == 1:
        return [*NAMES, "all"]
    return ["r", "w", "rw", "changes", "before", "if"]


def _why(repl: Repl, words: list[str]) -> list[str]:
    counters = [name for name in repl.session.pmu() if not name.startswith("IA32")]
    if words:
        return counters if words[0] == "pmi" else ["last"]
    return ["wrmsr", "rdmsr", "rdpmc", "pmi", *counters]


def _catch(_: Repl, words: list[str]) -> list[str]:
    if not words:
        return list(CAUGHT)
    return [*(row.name for row in EXITS), "if"] if words[0] == "exit" else ["if"]


def _set(repl: Repl, words: list[str]) -> list[str]:
    if not words:
        return [*repl.session.registers(), "msr", "mem", *OPTIONS]
    if words[0] == "msr" and len(words) == 1:
        return list(NAMES)
    if words[0] == "sections":
        return list(SECTIONS)
    return _expression(repl)


def _topics(repl: Repl, words: list[str]) -> list[str]:
    if words[:1] == ["symbols"]:
        return list(repl.session.program.symbols)
    return [] if words else list(TOPICS)


_Take = Callable[[Repl, list[str]], Iterable[str]]
_TAKES: dict[str, _Take] = {
    "place": _places,
    "msr": lambda _, words: [] if words else list(NAMES),
    "watch": _watch,
    "why": _why,
    "catch": _catch,
    "set": _set,
    "topic": _topics,
    "expression": lambda repl, _: _expression(repl),
    "section": lambda _, __: list(SECTIONS),
    "event": lambda _, __: ["all", "count", *KIND_NAMES.values()],
    "point": lambda repl, _: [str(point.number) for point in repl.session.points()],
    "verb": lambda _, words: [*(verb.name for verb in VERBS), *TOPICS] if not words else list(TOPICS),
}


def _files(word: str) -> list[str]:
    folder, _, begun = word.rpartition("/")
    where = path_of(folder or ("/" if word.startswith("/") else "."))
    try:
        with os.scandir(where) as entries:
            names = sorted(
                entry.name + ("/" if entry.is_dir() else "")
                for entry in entries
                if entry.name.startswith(begun)
            )
    except (OSError, ValueError):
        return []
    lead = f"{folder}/" if folder or word.startswith("/") else ""
    return [lead + name for name in names[:MOST]]
