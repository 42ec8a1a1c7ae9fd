"""Two builds, or the tree before and after a change of structure, give the same records and memory.

    python -m tests.tools.same_records save FILE [WHAT]       run and store
    python -m tests.tools.same_records compare FILE [WHAT]    run again; status 1 and a list of what differs

WHAT is `lessons` (default) or `all` (lessons, conformance guests and host programs), then modes with
commas. The suite runs on a build with bounds checks, users on one without; what differs between them
would be a bug that only one of them has. A refactoring that moves or drops fields of the record names
them in `tests/tools/moved_paths.toml`; any other difference is an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import lzma
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tests.conftest import ROOT
from vpmu_emu._jit import BOUNDS_CHECKED
from vpmu_emu.asm import Program, assemble_file
from vpmu_emu.checks import Plan, read_plan, run_as_asked
from vpmu_emu.errors import VpmuError
from vpmu_emu.linux.state import SYSTEM
from vpmu_emu.tables.modes import MODES

MOVED = ROOT / "tests" / "tools" / "moved_paths.toml"
FOLDERS = {"lessons": ("lessons",), "all": ("lessons", "conformance", "host")}
WHOLE = 8  # arrays of more elements are stored as a hash


def _walk(dtype: np.dtype[Any], path: str, offset: int) -> Iterator[tuple[str, int, np.dtype[Any], int]]:
    # (path, offset in bytes, scalar type, number of elements) of every leaf
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        count = int(np.prod(shape))
        if base.names is None:
            yield path, offset, base, count
            return
        for i in range(count):
            yield from _walk(base, f"{path}[{i}]", offset + i * base.itemsize)
    elif dtype.names is not None:
        assert dtype.fields is not None
        for name in dtype.names:
            kind, at = dtype.fields[name][:2]
            yield from _walk(kind, f"{path}.{name}" if path else name, offset + at)
    else:
        yield path, offset, dtype, 1


@cache
def leaf_fields() -> tuple[tuple[str, int, np.dtype[Any], int], ...]:
    """Path, offset, type and length of every leaf of the record."""
    return tuple(_walk(SYSTEM, "", 0))


@cache
def _bounds() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    starts = np.array([offset for _, offset, _, _ in leaf_fields()])
    sizes = np.array([kind.itemsize * count for _, _, kind, count in leaf_fields()])
    return starts, starts + sizes


def leaves(record: bytes) -> dict[str, int | str]:
    """Path -> value of every leaf that is not zero; long arrays as a hash."""
    found: dict[str, int | str] = {}
    before = np.concatenate(([0], np.cumsum(np.frombuffer(record, np.uint8) != 0)))
    starts, ends = _bounds()
    for k in np.nonzero(before[ends] - before[starts])[0]:
        path, offset, kind, count = leaf_fields()[k]
        part = record[offset : offset + kind.itemsize * count]
        if count == 1:
            found[path] = int(np.frombuffer(part, kind)[0])
        elif count <= WHOLE:
            found |= {f"{path}[{i}]": int(v) for i, v in enumerate(np.frombuffer(part, kind)) if v}
        else:
            found[path] = hashlib.blake2b(part, digest_size=8).hexdigest()
    return found


def plans(what: str) -> Iterator[tuple[str, Program, Plan]]:
    """`folder/file` of every guest, its program and what it asks for."""
    for folder in FOLDERS[what]:
        for path in sorted((ROOT / "guests" / folder).glob("*.s")):
            program = assemble_file(path)
            lines = [(e.line, e.text) for e in program.expectations if e.file == program.name]
            yield f"{folder}/{path.name}", program, read_plan(program.name, lines, program, tuple(MODES))


def names(what: str) -> list[str]:
    """The names of all runs."""
    return [f"{guest} {mode}" for guest, _, plan in plans(what) for mode in plan.modes]


def each(
    what: str, modes: list[str] | None, wanted: Iterable[str] | None = None
) -> Iterator[tuple[str, dict[str, int | str]]]:
    """Every guest in every mode that it names, or in those asked for: `folder/file mode`, leaves, `memory`.

    With `wanted` only the runs of these names.
    """
    only = None if wanted is None else set(wanted)
    for guest, program, plan in plans(what):
        args = plan.args
        names = {f"{guest} {mode}": mode for mode in modes or plan.modes}
        if only is not None:
            names = {name: mode for name, mode in names.items() if name in only}
        if plan.guest and names:
            # a host program finds its path on its stack: it must not depend on where the sources are
            host = Path(plan.file).relative_to(ROOT).as_posix()
            program, args = assemble_file(Path(plan.guest)), (*args, "--host", host)
        for name, mode in names.items():
            yield name, _left(program, mode, plan.cpu, args)


def _left(program: Program, mode: str, cpu: str | None, args: Sequence[str]) -> dict[str, int | str]:
    try:
        with contextlib.chdir(ROOT):
            result = run_as_asked(program, mode, cpu, args)
    except VpmuError as e:
        return {"refused": str(e)}
    return {
        **leaves(result.record),
        "memory": hashlib.blake2b(bytes(result.memory), digest_size=8).hexdigest(),
    }


def runs(what: str, modes: list[str] | None) -> dict[str, dict[str, int | str]]:
    """All of `each`."""
    return dict(each(what, modes))


def moved() -> tuple[dict[str, str], list[str], list[str]]:
    """Old path -> new path, paths that are gone, paths that are new; each a beginning of a path.

    Indices are left out: `vcpus.pmu.counter` is that field of all of them.
    """
    if not MOVED.exists():
        return {}, [], []
    table = tomllib.loads(MOVED.read_text())
    return table.get("moved", {}), table.get("gone", []), table.get("new", [])


def plain(path: str) -> str:
    """The path without its indices."""
    return "".join(part.partition("]")[2] if i else part for i, part in enumerate(path.split("[")))


def differences(
    old: Mapping[str, int | str], new: Mapping[str, int | str],
    renamed: dict[str, str], gone: list[str], added: list[str],
) -> list[str]:
    """One line for each leaf that differs for no reason that is named."""

    def begins(path: str, names: list[str]) -> bool:
        return any(path == name or path.startswith(name + ".") for name in names)

    expected = {}
    for path, value in old.items():
        bare = plain(path)
        if begins(bare, gone):
            continue
        for before, after in renamed.items():
            if begins(bare, [before]):
                path = path.replace(before, after) if before in path else path
        expected[path] = value
    have = {path: value for path, value in new.items() if not begins(plain(path), added)}
    return [
        f"{path}: was {expected.get(path, 0)}, is {have.get(path, 0)}"
        for path in sorted(expected.keys() | have.keys())
        if expected.get(path, 0) != have.get(path, 0)
    ]


def main() -> int:
    """Status 0 if all records are equal."""
    what, file = sys.argv[1:3]
    scope = sys.argv[3] if len(sys.argv) > 3 else "lessons"
    modes = sys.argv[4].split(",") if len(sys.argv) > 4 else None
    found = runs(scope, modes)
    print(f"{len(found)} runs {'with' if BOUNDS_CHECKED else 'without'} bounds checks")
    if what == "save":
        Path(file).write_bytes(lzma.compress(json.dumps(found, separators=(",", ":")).encode()))
        return 0
    saved = json.loads(lzma.decompress(Path(file).read_bytes()))
    wrong = 0
    for run, new in found.items():
        if run not in saved:
            print(f"{run}: not stored")
            wrong += 1
            continue
        lines = differences(saved[run], new, *moved())
        wrong += bool(lines)
        for line in lines[:5]:
            print(f"{run}: {line}")
        if len(lines) > 5:
            print(f"{run}: {len(lines) - 5} more")
    for run in saved.keys() - found.keys():
        print(f"{run}: stored, not run")
        wrong += 1
    return 1 if wrong or not found else 0


if __name__ == "__main__":
    sys.exit(main())
