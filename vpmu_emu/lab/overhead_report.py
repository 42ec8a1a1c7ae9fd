"""The predicted table in words, as plain data and as a picture; every number comes from its cells."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from vpmu_emu.errors import ConfigError
from vpmu_emu.lab.overhead import Cell, Question, ask, drawn, instead, sensitivity
from vpmu_emu.lab.validation import validate
from vpmu_emu.output import check_output, write_output
from vpmu_emu.report import Table
from vpmu_emu.system import host_model
from vpmu_emu.tables.assumptions import ASSUMPTIONS, Assumption

WIDTH = 60  # characters of a bar
SHOWN = 6  # rows of a sensitivity
SHORT = {"emulated": "emul.", "passthrough --all-passthrough": "all", "passthrough": "pass."}


def row(cell: Cell, factors: Mapping[str, Any]) -> dict[str, Any]:
    """One cell as plain data: what --json gives."""
    import numpy as np

    low, high = np.percentile(cell.overhead(factors), [5, 95])
    typical = float(cell.overhead())
    published = cell.published()
    exits = cell.exits()
    numbers = {
        "samples_per_s": cell.rate("perf_samples"),
        "pmis_per_s": cell.rate("perf_nmis"),
        "counters_per_pmi": cell.rate("perf_samples") / max(cell.rate("perf_nmis"), 1e-9),
        "exits_per_s": exits / cell.seconds(),
        "exits_per_pmi": exits / cell.seconds() / max(cell.rate("perf_nmis"), 1e-9),
        "reentered_without_switch": cell.rate("fastpaths") * cell.seconds() / max(exits, 1),
        "rotations_per_s": cell.rate("perf_rotations"),
        "creations_per_s": cell.rate("created"),
        "throttles_per_s": cell.rate("perf_throttles"),
        "nmi_handler_ns": cell.rate("perf_nmi_ns") / max(cell.rate("perf_nmis"), 1e-9),
    }
    return {
        "case": cell.case,
        "vpmu": cell.design.label,
        "published": published,
        "low": round(float(low), 3),
        "typical": round(typical, 3),
        "high": round(float(high), 3),
        "error": None if published is None else round(typical / published - 1, 4),
        "inside": None if published is None else bool(low <= published <= high),
        "cycles": {name: round(share, 5) for name, share in cell.where().items()},
        "numbers": {name: round(value, 3) for name, value in numbers.items()},
        "sensitivity": {
            name: round(points, 3) for name, points in sensitivity(cell).items() if abs(points) >= 0.005
        },
    }


def table(
    question: Question,
    jobs: int | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
    *,
    assumptions: bool = False,
    validation: bool = False,
) -> dict[str, Any]:
    """Everything that a question gives, as plain data: docs/overhead.md has the keys.

    Args:
        question: what to run.
        jobs, progress: as for `lab.pool.run_all`.
        assumptions: run the other answers to what is taken for granted, too.
        validation: predict the published figures that the costs are not made of, too.

    Raises:
        ConfigError: what cannot be asked.
    """
    model = host_model(question.cpu, question.settings)
    factors = drawn(model, question.draws, question.seed)
    cells = ask(question, jobs, progress)
    found: dict[str, Any] = {
        "schema": 1,
        "question": _plain(question),
        "cells": [row(cell, factors) for cell in cells],
    }
    if assumptions:
        found["assumptions"] = [
            _assumed(one, question, cells, jobs, progress) for one in ASSUMPTIONS.values()
        ]
    if validation:
        found["validation"] = validate(question.seed, jobs, progress)
    return found


def _plain(question: Question) -> dict[str, Any]:
    asked = attrs.asdict(question, recurse=False)
    asked["designs"] = [design.label for design in question.designs]
    return {
        key: dict(value)
        if isinstance(value, Mapping)
        else list(value)
        if isinstance(value, tuple)
        else value
        for key, value in asked.items()
    }


def _assumed(
    one: Assumption, question: Question, cells: Sequence[Cell], jobs: int | None,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:  # fmt: skip
    points: list[float | None] = []
    if one.instead:
        others = {
            (other.case, other.design.label): float(other.overhead())
            for other in ask(instead(question, one), jobs, progress)
        }
        for cell in cells:
            other = others.get((cell.case, cell.design.label))
            points.append(None if other is None else round(other - float(cell.overhead()), 3))
    flat = {
        key: value
        for part in one.instead.values()
        if isinstance(part, dict)
        for key, value in part.items()
    }
    flat |= {key: value for key, value in one.instead.items() if not isinstance(value, dict)}
    return {
        "name": one.name,
        "value": one.value,
        "why": one.why,
        "instead": " ".join(f"{key}={value}" for key, value in flat.items()),
        "points": points,
    }


def tables(found: Mapping[str, Any]) -> list[Table]:
    """What `as_json` gave, as tables."""
    cells = found["cells"]
    shown = [
        Table(
            "Score lost to perf in the guest, percent (low and high: 5 and 95 % of random costs)",
            ("case", "vPMU", "published", "low", "typical", "high", "error"),
            tuple(
                (
                    c["case"], c["vpmu"], _two(c["published"]), _two(c["low"]), _two(c["typical"]),
                    _two(c["high"]), "-" if c["error"] is None else f"{100 * c['error']:+.0f} %",
                )
                for c in cells
            ),
        ),
        Table(
            "What happened, a second of guest time",
            ("case", "vPMU", "samples", "PMIs", "counters a PMI", "exits a PMI", "no switch", "rotations",
             "events made", "NMI handler"),
            tuple(
                (
                    c["case"], c["vpmu"], round(n["samples_per_s"]), round(n["pmis_per_s"]),
                    f"{n['counters_per_pmi']:.2f}", f"{n['exits_per_pmi']:.1f}",
                    f"{100 * n['reentered_without_switch']:.0f} %", round(n["rotations_per_s"]),
                    round(n["creations_per_s"]), f"{n['nmi_handler_ns'] / 1000:.1f} us",
                )
                for c in cells
                for n in (c["numbers"],)
            ),
        ),
        Table(
            "Where the time went, percent",
            ("case", "vPMU", *(_short(name) for name in cells[0]["cycles"])),
            tuple(
                (c["case"], c["vpmu"], *(f"{100 * share:.1f}" for share in c["cycles"].values()))
                for c in cells
            ),
        ),
        Table(
            "What doubling one cost adds, points",
            ("case", "vPMU", "cost (isa/costs.toml)"),
            tuple(
                (c["case"], c["vpmu"], ", ".join(f"{name} {points:+.2f}" for name, points in first))
                for c in cells
                for first in (list(c["sensitivity"].items())[:SHOWN],)
            ),
        ),
    ]  # fmt: skip
    if found.get("assumptions"):
        labels = [f"{c['case'].split('-')[0]} {SHORT.get(c['vpmu'], c['vpmu'])}" for c in cells]
        shown.append(
            Table(
                "What is taken for granted, and what the other answer adds, points",
                ("assumption", "value", "instead", *labels),
                tuple(
                    (a["name"], a["value"], a["instead"] or "-", *map(_signed, a["points"]))
                    if a["points"]
                    else (a["name"], a["value"], "-", *("-" for _ in labels))
                    for a in found["assumptions"]
                ),
            )
        )
    if found.get("validation"):
        shown.append(
            Table(
                "Other published figures, none of which the costs are made of",
                ("figure", "unit", "published", "low", "typical", "high", "inside"),
                tuple(
                    (
                        v["name"], v["unit"],
                        *(_three(v[key]) for key in ("published", "low", "typical", "high")),
                        "yes" if v["inside"] else "no",
                    )
                    for v in found["validation"]
                ),
            )
        )  # fmt: skip
    return shown


def _short(name: str) -> str:
    return {"exits": "exits", "perf": "host perf", "pmu_switch": "switches", "interrupts": "NMIs, IRQs",
            "tasks": "tasks"}.get(name, name)  # fmt: skip


def _two(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"


def _three(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def bars(found: Mapping[str, Any]) -> str:
    """The table as a picture of characters: an interval, `o` what is predicted, `x` what was published."""
    cells = found["cells"]
    most = max(max(c["high"], c["published"] or 0) for c in cells)
    wide = max(len(f"{c['case']} {c['vpmu']}") for c in cells)
    lines = []
    for c in cells:
        places = [" "] * (WIDTH + 1)
        at = [round(WIDTH * c[key] / most) for key in ("low", "high", "typical")]
        for k in range(at[0], at[1] + 1):
            places[k] = "="
        places[at[2]] = "o"
        if c["published"] is not None:
            k = round(WIDTH * c["published"] / most)
            places[k] = "*" if places[k] == "o" else "x"
        name = f"{c['case']} {c['vpmu']}"
        lines.append(f"  {name:<{wide}} |{''.join(places).rstrip()}")
    scale = f"  {'':<{wide}} +{'-' * WIDTH} {most:.0f} %"
    return "\n".join([*lines, scale, "  = 5 to 95 %   o predicted   x published   * both", ""])


def check_picture(path: Path) -> None:
    """Whether a picture can be drawn there, before anything is run for it.

    Raises:
        ConfigError: matplotlib (extra `plot`) is not installed, or the file cannot be what its name says.
        OSError: or cannot be written.
    """
    if path.suffix.lower() not in (".png", ".svg"):
        raise ConfigError("plot", f"{path.name} is neither a .png nor a .svg")
    try:
        import matplotlib  # noqa: F401, ICN001
    except ImportError:
        raise ConfigError(
            "plot", "pictures need the extra `plot`: pip install 'vpmu-emu[plot]'"
        ) from None
    check_output(str(path), [])


def plot(found: Mapping[str, Any], path: Path) -> None:
    """Draw the table into a PNG or SVG file; raises as `check_picture`."""
    check_picture(path)
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "vpmu"  # the same numbers make the same file
    import matplotlib.pyplot as plt

    cells = found["cells"]
    figure, axes = plt.subplots(figsize=(9, 0.5 * len(cells) + 1.2), layout="constrained")
    for k, c in enumerate(reversed(cells)):
        axes.plot(
            [c["low"], c["high"]],
            [k, k],
            color="tab:blue",
            linewidth=6,
            alpha=0.35,
            solid_capstyle="butt",
        )
        axes.plot(c["typical"], k, "o", color="tab:blue", label="predicted" if k == 0 else None)
        if c["published"] is not None:
            axes.plot(c["published"], k, "x", color="black", label="published" if k == 0 else None)
    axes.set_yticks(
        range(len(cells)), [f"{c['case']}\n{c['vpmu']}" for c in reversed(cells)], fontsize=8
    )
    axes.set_xscale("log")
    ticks = [2, 5, 10, 20, 50, 100]
    axes.set_xticks(ticks, [f"{tick} %" for tick in ticks])
    axes.set_xlabel("score lost to perf in the guest")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles, labels, loc="lower right")
    axes.grid(axis="x", alpha=0.3)
    form = path.suffix.lower()[1:]
    picture = io.BytesIO()
    figure.savefig(picture, format=form, metadata={"Date": None} if form == "svg" else {"Software": None})
    plt.close(figure)
    write_output(path, picture.getvalue())
