"""What the workloads are made of: writes docs/workloads.md, `python -m tests.tools.workloads`.

A run is a pure function of its program and its parameters, so the page is exact.
"""

from __future__ import annotations

import re
from functools import cache

import attrs
import numpy as np

from tests.conftest import ROOT
from tests.tools.compile_guests import GUESTS, WORKLOADS
from vpmu_emu.asm import assemble_file
from vpmu_emu.debug.session import Session
from vpmu_emu.machine.state import CLASS
from vpmu_emu.tables.cpus import cpu as cpu_model

PAGE = ROOT / "docs" / "workloads.md"
KERNELS = tuple(name for name in WORKLOADS if name != "fio")
UNITS = 400
CPU = "spr"
SIXTEENTHS = 16  # the record has time in sixteenths of a cycle

HEAD = """\
# Workloads

What a guest does while somebody measures it: eight kernels of integer work in the spirit of SPECint, and
one that waits for a disk. They are our own, in C (`guests/c/workloads`), compiled by gcc into the committed
`guests/workloads/NAME.s`, and each is a whole guest: `perf_kernel.inc` brings a small kernel that boots,
ticks and, if asked, samples as `perf record` does.

```
vpmu run guests/workloads/chase.s --vpmu mediated
vpmu run guests/workloads/chase.s --vpmu mediated --defsym UNITS=2000 --defsym SEED=7 --defsym EVENTS=6
vpmu check guests/workloads
```

A workload does units of work, each of a few thousand cycles: `WARM_UNITS` of them, then `UNITS` that count.
It says how many it did in a second of its own time, and a checksum of what they computed. `SEED`,
`WARM_UNITS` and `UNITS` alone decide that: not the mode, the processor, the events or the rate of the tick.
The same C computes it natively (`cc -DHOSTED`); a test compares the two. [programs.md](programs.md) has how
to write another.

"""

PARAMETERS = """\
## Parameters

Each is a symbol that `--defsym NAME=VALUE` sets.

| | default | |
|---|---|---|
"""

PRINTED = """
A run prints the workload's line and, with EVENTS, perf's. It ends with exit code 0; 1 if a parameter or the
PMU will not do, which is said; 2 if an NMI came that perf does not know. What was counted besides is in
memory, under the names in `guests/c/perf_kernel.c`: `vpmu check` and `vpmu debug` read `mem64(perf_ticks)`.

"""

TABLE = """\
## What they are made of

On `{cpu}`, in mode `bare` without events, by `python -m tests.tools.workloads`: {units} units with seed 1.
The spread is the standard deviation of a unit's time; the setup is all that comes before the first of them.

| {columns} |
|{lines}
"""
COLUMNS = (
    "", "cycles a unit", "spread", "instructions a unit", "IPC", "branches", "mispredicted",
    "LLC references", "LLC misses", "setup",
)  # fmt: skip

TAIL = """
Branches in percent of the instructions, the next three per thousand instructions. Indirect jumps are never
mispredicted in the model ([interpreter.md](interpreter.md)), which is why `interp` is so smooth here.

What `fio` waits for is a disk that takes 1 / `IO_HZ` of a second (50 µs unless `--defsym IO_HZ=…` says
otherwise), by a timer of the guest's kernel: {fio:.1f} µs a request here, and all that exits, interrupts
and the kernel take makes a request longer.
"""


@attrs.frozen
class Mix:
    """What `len(cycles)` units of a workload took, one by one, and retired altogether."""

    name: str
    setup: int  # cycles before the first of them
    cycles: tuple[int, ...]
    retired: dict[str, int]  # by event class: inst, branch, brmiss, llcref, llcmiss

    @property
    def unit(self) -> float:
        """Cycles of a unit, on average."""
        return float(np.mean(self.cycles))

    @property
    def spread(self) -> float:
        """The standard deviation of a unit's cycles, as a part of them."""
        return float(np.std(self.cycles)) / self.unit

    @property
    def ipc(self) -> float:
        """Instructions in a cycle."""
        return self.retired["inst"] / sum(self.cycles)

    def per_1000(self, name: str) -> float:
        """How many of that class in a thousand instructions."""
        return 1000 * self.retired[name] / self.retired["inst"]


@cache
def measured(name: str, units: int = UNITS, seed: int = 1) -> Mix:
    """Run a workload in mode bare, and stop before each unit that counts."""
    defsym = {"SEED": seed, "UNITS": units}
    session = Session(assemble_file(GUESTS / "workloads" / f"{name}.s", defsym=defsym), cpu=CPU)
    core = session.system.core
    session.break_at("measured", once=True)
    session.cont()
    setup = int(core.t) // SIXTEENTHS
    session.break_at("workload_unit")
    session.break_at("measured_end", once=True)
    times, totals = [], []
    for _ in range(units + 1):
        if session.cont().ended:
            raise RuntimeError(f"{name}: the run ended before {units} units")
        times.append(int(core.t) // SIXTEENTHS)
        totals.append(core.total.sum(axis=0))
    retired = totals[-1] - totals[0]
    names = ("inst", "branch", "brmiss", "llcref", "llcmiss")
    return Mix(name, setup, tuple(map(int, np.diff(times))), {n: int(retired[CLASS[n]]) for n in names})


def parameters() -> str:
    """The symbols that the kernel and the workloads ask for, with their defaults."""
    asked = re.compile(r"^\s*\.ifndef (\w+)\s*# (.*)\n\s*\.equ \1, (\w+)$", re.MULTILINE)
    files = [GUESTS / "include" / "perf_kernel.inc", *(GUESTS / "workloads" / f"{n}.s" for n in WORKLOADS)]
    found = [row for path in files for row in asked.findall(path.read_text(encoding="utf-8"))]
    return "".join(f"| `{name}` | {default} | {says} |\n" for name, says, default in found)


def row(mix: Mix) -> str:
    """A line of the table."""
    khz = cpu_model(CPU).core_khz
    shown = (
        f"`{mix.name}`", f"{mix.unit:,.0f}", f"{mix.spread:.1%}",
        f"{mix.retired['inst'] / len(mix.cycles):,.0f}",
        f"{mix.ipc:.2f}", f"{mix.per_1000('branch') / 10:.1f}", f"{mix.per_1000('brmiss'):.1f}",
        f"{mix.per_1000('llcref'):.2f}", f"{mix.per_1000('llcmiss'):.2f}", f"{mix.setup / khz:.2f} ms",
    )  # fmt: skip
    return f"| {' | '.join(shown)} |\n"


def text() -> str:
    """The page as it should be."""
    rows = "".join(row(measured(name)) for name in KERNELS)
    fio = measured("fio", 100).unit / cpu_model(CPU).core_khz * 1000
    lines = "---|" * len(COLUMNS)
    table = TABLE.format(cpu=CPU, units=UNITS, columns=" | ".join(COLUMNS), lines=lines)
    return HEAD + PARAMETERS + parameters() + PRINTED + table + rows + TAIL.format(fio=fio)


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
