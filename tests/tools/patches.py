"""Every patch of the series in and out: `python -m tests.tools.patches [N…]`.

Row N of the table is the guest `guests/patches/NN_*.s`: its expectations hold with the series whole, and
not without patch N. Then the matrix: without N fail the guests of N and of the rows that `reddens` names,
and no other. Nobody here reads what was left out: a guest sees registers and counters, its expectations
those, counts of the host's events, the hardware's registers and the kernel's log. Ends with
`on 40/40 green, off 40/40 red`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import attrs

from tests.conftest import ROOT
from vpmu_emu.checks import Plan, check_program, load_plan, run_as_asked, show
from vpmu_emu.cli import prepare
from vpmu_emu.tables.patches import PATCHES, Patch

FOLDER = ROOT / "guests" / "patches"
MODE = "passthrough"
ROWS = tuple(row for row in PATCHES.values() if not row.outside)
MOST = ("--max-insns", "10000000")  # of a guest that waits for what never comes


@attrs.frozen
class Seen:
    """What became of the guest of a row: whether all of it held, and the value that tells."""

    green: bool
    expected: str
    observed: str


def guest_of(row: Patch) -> Path:
    """The guest that shows a patch."""
    (path,) = FOLDER.glob(f"{row.number:02}_*.s")
    return path


@cache
def guest(row: Patch) -> tuple[Any, Plan]:
    """It and what its comments ask for, assembled once."""
    program, plan = load_plan(guest_of(row))
    assert plan.modes == (MODE,), f"{plan.file}: wants more than the series"
    return program, attrs.evolve(plan, args=(*MOST, *plan.args))


def look(row: Patch, without: Sequence[int]) -> Seen:
    """Run the guest of a row with these patches left out."""
    program, plan = guest(row)

    def runner(*asked: Any) -> Any:
        return run_as_asked(*asked, without=without)

    report = check_program(program, plan, runner)
    red = [verdict for verdict in report.verdicts if not verdict.ok]
    told = (red or report.verdicts)[0]
    observed = told.message or show(told.left)
    if not red and report.stops:
        observed = report.stops[0].splitlines()[0]
    return Seen(not red and not report.stops, told.expectation.text, observed)


def column(off: int) -> dict[int, Seen]:
    """Every row without patch `off`; 0: without none."""
    return {row.number: look(row, (off,) if off else ()) for row in ROWS}


def columns(numbers: Iterable[int]) -> dict[int, dict[int, Seen]]:
    """The columns of the matrix by what is left out, by two processes."""
    numbers = list(numbers)
    with Pool(2) as pool:
        return dict(zip(numbers, pool.map(column, numbers, chunksize=1), strict=True))


def undeclared(off: int, seen: Mapping[int, Seen]) -> list[str]:
    """What a column has that the table does not say."""
    wanted = {off, *PATCHES[off].reddens}
    red = {number for number, one in seen.items() if not one.green}
    return [f"without {off:02} row {n:02} is red, and not named" for n in sorted(red - wanted)] + [
        f"without {off:02} row {n:02} is green, and named" for n in sorted(wanted - red)
    ]


def main(words: Sequence[str]) -> int:
    """Status 0: every row is green with the series whole, red without its patch, the matrix as declared."""
    start = time.perf_counter()
    chosen = [int(word) for word in words] or [row.number for row in ROWS]
    prepare([MODE])
    matrix = columns([0, *chosen])
    on = matrix.pop(0)
    wrong = []
    for number, seen in matrix.items():
        row, off = on[number], seen[number]
        print(f"{number:02} {PATCHES[number].title}")
        print(f"   {'on  green' if row.green else 'on  RED  '}  {row.expected}: {row.observed}")
        print(f"   {'off GREEN' if off.green else 'off red  '}  {off.expected}: {off.observed}")
        wrong += undeclared(number, seen)
    print(*wrong, sep="\n", end="\n" if wrong else "")
    green = sum(on[n].green for n in chosen)
    red = sum(not seen[n].green for n, seen in matrix.items())
    cells = len(ROWS) * len(chosen)
    print(f"{time.perf_counter() - start:.1f} s")
    print(f"matrix {cells - len(wrong)} of {cells} as declared")
    print(f"{len({PATCHES[n].shows for n in chosen})} observables")
    print(f"on {green}/{len(chosen)} green, off {red}/{len(chosen)} red")
    return 1 if wrong or green < len(chosen) or red < len(chosen) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
