"""Every deliberate bug must be found by a guest: `python -m tests.tools.mutants [NAME…]`.

In one process: the guests without a bug, which must hold; each bug, until a few guests have failed; the
guests once more with the bug `none`, which nothing may find. Ends with `found 32 of 32`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from tests.conftest import ROOT
from vpmu_emu._jit import COMPILES
from vpmu_emu.checks import Plan, Verdict, check_program, find_guests, load_plan, run_as_asked, show
from vpmu_emu.cli import prepare
from vpmu_emu.errors import VpmuError
from vpmu_emu.tables.mutants import MUTANTS, Mutant, mutant

FOLDERS = (ROOT / "guests" / "conformance", ROOT / "guests" / "lessons")
ENOUGH = 3  # failing guests after which a bug is found well enough
# A guest that a bug sends round in circles, waiting for what never comes, ends here.
MOST = ("--max-insns", "20000000" if COMPILES else "20000")


@attrs.frozen
class Failure:
    """A guest that found a bug, and the first value in which it differs."""

    path: Path
    mode: str
    value: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT / 'guests')} [{self.mode}] {self.value}"


def first_value(program: Any, red: Sequence[Verdict], outcome: Any) -> str:
    """The first value that differs: in the words of a guest that judges itself, else of its comments."""
    symbols = program.symbols
    if "first_bad" in symbols:
        case, got, want = (
            int.from_bytes(outcome.read(symbols[f"first_{name}"], 8), "little")
            for name in ("bad", "got", "want")
        )
        if case:
            return f"case {case:#x}: expected {show(want)}, got {show(got)}"
    # That a guest did not come to its end says less than a value does.
    verdict = next((v for v in red if v.expectation.text.split()[0] not in ("exit_code", "stop")), red[0])
    e = verdict.expectation
    wanted = f"{'' if e.op == '==' else e.op + ' '}{show(verdict.right)}"
    return f"line {e.line}: {e.text}: {verdict.message or f'expected {wanted}, got {show(verdict.left)}'}"


@cache
def guest(path: Path) -> tuple[Any, Plan]:
    """A guest and what its comments ask for, assembled once."""
    return load_plan(path)


def guests() -> list[Path]:
    """Every guest that checks itself."""
    return find_guests([folder for folder in FOLDERS if folder.is_dir()])


def failures(inject: Sequence[str], paths: Sequence[Path]) -> Iterator[Failure]:
    """The guests among `paths` that do not hold with these bugs in, one after the other."""
    for path in paths:
        program, plan = guest(path)
        for mode in plan.modes:  # one at a time: the first that fails says enough
            part = attrs.evolve(plan, modes=(mode,), args=(*MOST, *plan.args))
            outcomes = []

            def runner(*asked: Any, outcomes: list[Any] = outcomes) -> Any:
                outcomes.append(run_as_asked(*asked, inject=inject))
                return outcomes[0]

            with np.errstate(over="ignore"):
                report = check_program(program, part, runner)
            red = [v for v in report.verdicts if not v.ok]
            if red:
                yield Failure(path, mode, first_value(program, red, outcomes[0]))
                break


def find(row: Mutant, paths: Sequence[Path]) -> list[Failure]:
    """The first of the guests `paths` that find a bug, the one that the table names being asked first."""
    found = []
    first = sorted(paths, key=lambda path: path != ROOT / "guests" / row.killer)
    for failure in failures([row.name], first):
        found.append(failure)
        if len(found) == ENOUGH:
            break
    return found


def tell(name: str, found: Sequence[Failure], complete: bool) -> None:
    """What became of one bug."""
    if not found:
        print(f"survived  {name}")
        return
    names = " ".join(failure.path.stem for failure in found)
    print(f"found     {name}: {names}{'' if complete else ' …'}\n          {found[0]}")


def main(names: Sequence[str]) -> int:
    """Status 0 if the guests hold without a bug and every bug asked for is found."""
    start = time.perf_counter()
    rows = [mutant(name) for name in names] or list(MUTANTS)
    paths = guests()
    prepare(sorted({mode for path in paths for mode in guest(path)[1].modes}))
    red = list(failures((), paths))
    for failure in red:
        print(f"RED       without a bug: {failure}")
    if not red:
        print(f"green     {len(paths)} guests without a bug")
    paths = [path for path in paths if path not in {failure.path for failure in red}]  # they prove nothing
    lost = []
    for row in rows:
        if row.killer.startswith("tests/"):
            print(f"elsewhere {row.name}: {row.killer}")
            continue
        found = find(row, paths)
        tell(row.name, found, len(found) < ENOUGH)
        lost += [] if found else [row]
    again = list(failures((), paths))
    tell("none", again, True)
    print(f"{time.perf_counter() - start:.1f} s")
    for group in ("kernel", "selftest", "conformance"):
        mine = [row for row in rows if row.group == group and not row.killer.startswith("tests/")]
        head = "" if group == "conformance" else f"{group}: "
        print(f"{head}found {sum(row not in lost for row in mine)} of {len(mine)}")
    return 1 if red or lost or again else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except VpmuError as error:
        sys.exit(str(error))
