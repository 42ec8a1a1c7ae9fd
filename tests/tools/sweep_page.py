"""Keeps what docs/sweep.md shows true: `python -m tests.tools.sweep_page [NAME …]` runs recipes."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.conftest import ROOT
from vpmu_emu.data import guests_dir
from vpmu_emu.lab.sweep import sweep
from vpmu_emu.report import Table, plain

PAGE = ROOT / "docs" / "sweep.md"
SHIPPED = sorted(path.stem for path in (guests_dir() / "sweeps").glob("*.toml"))
Rows = list[dict[str, Any]]


def modes(rows: Rows) -> list[str]:
    """In the order of the spec."""
    order = ("bare", "emulated", "passthrough", "mediated")
    return [mode for mode in order if any(row["vpmu"] == mode for row in rows)]


def exit_cost(rows: Rows) -> str:
    """Of the time of 24 samples over the cost of an exit: slope and rest."""
    lines = []
    for mode in modes(rows):
        own = [row for row in rows if row["vpmu"] == mode]
        slope, rest = np.polyfit([r["set.cost.vm_exit"] for r in own], [r["work"] for r in own], 1)
        told = f"{slope / 24:.1f} exits a sample, {rest / 24:,.0f} cycles a sample without them"
        lines.append(f"{mode}: {told}\n")
    return "".join(lines)


def frequency(rows: Rows) -> str:
    """Percent of its work that a guest loses, by frequency and mode."""
    rate = {(r["vpmu"], r["defsym.EVENTS"], r["defsym.FREQ"]): r["rate"] for r in rows}
    asked = sorted({f for _, events, f in rate if events})
    table = [
        (str(f), *(f"{100 - 100 * rate[mode, 6, f] / rate[mode, 0, 1000]:.1f}%" for mode in modes(rows)))
        for f in asked
    ]  # fmt: skip
    return plain(Table("", ("samples a second", *modes(rows)), tuple(table)))


def lost(rows: Rows, by: Callable[[dict[str, Any]], Any], first: str) -> str:
    """Percent of its rate that a guest loses with six events, by something and mode."""
    rate = {(r["vpmu"], r["defsym.EVENTS"], by(r)): r["rate"] for r in rows}
    table = [
        (_told(x), *(f"{100 - 100 * rate[mode, 6, x] / rate[mode, 0, x]:.1f}%" for mode in modes(rows)))
        for x in sorted({by(r) for r in rows})
    ]  # fmt: skip
    return plain(Table("", (first, *modes(rows)), tuple(table)))


def _told(x: Any) -> str:
    return ", ".join(map(str, x)) if isinstance(x, tuple) else str(x)


def events(rows: Rows) -> str:
    """Percent of its work that a guest loses, by number of events and mode."""
    rate = {(r["vpmu"], r["defsym.EVENTS"]): r["rate"] for r in rows}
    table = [
        (str(n), *(f"{100 - 100 * rate[mode, n] / rate[mode, 0]:.1f}%" for mode in modes(rows)))
        for n in sorted({n for _, n in rate if n})
    ]  # fmt: skip
    return plain(Table("", ("events", *modes(rows)), tuple(table)))


def exit_rate(rows: Rows) -> str:
    """Microseconds that a request takes beyond the disk's own time, by the disk's rate, events and mode."""
    rate = {(r["vpmu"], r["defsym.EVENTS"], r["defsym.IO_HZ"]): r["rate"] for r in rows}
    table = [
        (f"{hz:,}", *(f"{1e6 / rate[mode, n, hz] - 1e6 / hz:.1f}" for n in (0, 6) for mode in modes(rows)))
        for hz in sorted({hz for _, _, hz in rate})
    ]  # fmt: skip
    heads = [f"{mode}{', sampling' if n else ''}" for n in (0, 6) for mode in modes(rows)]
    return plain(Table("", ("requests a second", *heads), tuple(table)))


def counters(rows: Rows) -> str:
    """Percent lost by the number of general-purpose counters."""
    return lost(rows, lambda r: r["guest.gp"], "counters")


def hz(rows: Rows) -> str:
    """Percent lost by the ticks of the guest's kernel and of the host's."""
    return lost(rows, lambda r: (r["defsym.HZ"], r["hz"]), "HZ of the guest, the host")


def skid(rows: Rows) -> str:
    """PMIs that were taken for somebody else's, lost, and NMIs that were nobody's."""
    keys = ("vpmu", "pmi_vector", "pmi_skid", "taken", "misattributed", "lost", "unclaimed")
    ordered = sorted(rows, key=lambda r: [modes(rows).index(r["vpmu"]), r["pmi_vector"], _cycles(r)])
    return plain(Table("", keys, tuple(tuple(r[key] for key in keys) for r in ordered)))


def _cycles(row: dict[str, Any]) -> list[int]:
    return [int(part) for part in row["pmi_skid"].split(":")]


SHOWN: dict[str, Callable[[Rows], str]] = {
    "exit_cost": exit_cost, "frequency": frequency, "events": events, "exit_rate": exit_rate,
    "counters": counters, "hz": hz, "skid": skid,
}  # fmt: skip


def rows_of(name: str) -> Rows:
    """The rows of a sweep that is shipped."""
    with tempfile.TemporaryDirectory() as folder:
        return list(sweep(name, Path(folder) / "x.parquet").rows)


def block(name: str) -> re.Pattern[str]:
    """The first block of text behind the recipe's name."""
    return re.compile(rf"(\(`{name}`\).*?\n```text\n)(.*?)(```\n)", re.DOTALL)


def shown(name: str) -> str:
    """What the page shows for a recipe."""
    found = block(name).search(PAGE.read_text(encoding="utf-8"))
    assert found is not None
    return found[2]


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    for name in sys.argv[1:] or SHOWN:
        new = SHOWN[name](rows_of(name))
        text = block(name).sub(lambda found, new=new: found[1] + new + found[3], text)
    PAGE.write_text(text, encoding="utf-8")
