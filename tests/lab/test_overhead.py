"""The predicted table: its cells follow from what happened in runs, and its intervals from the costs'."""

from __future__ import annotations

import json
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from click.testing import CliRunner

from tests.conftest import ROOT
from vpmu_emu.cli import main
from vpmu_emu.errors import ConfigError
from vpmu_emu.lab import overhead, overhead_report, validation
from vpmu_emu.lab.measure import WORKLOADS, Task, measure
from vpmu_emu.lab.overhead import (
    Cell,
    Question,
    designs,
    drawn,
    intervals,
    question_of,
    sensitivity,
)
from vpmu_emu.system import host_model
from vpmu_emu.tables.assumptions import ASSUMPTIONS
from vpmu_emu.tables.figures import FIGURES, TARGET

MODEL = host_model("spr")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def question(**asked):
    return Question(**{"workloads": ("chase",), "designs": designs()[:3], **asked})


@cache
def cells():
    """All six, of one workload."""
    return overhead.ask(question(), jobs=2)


def cell(case, design):
    (found,) = [c for c in cells() if c.case == case and c.design == designs()[design]]
    return found


def test_the_order_of_the_cells_is_the_published_one():
    for case in ("basic-sampling", "multiplex-sampling"):
        emulated, everything, filtered = (float(cell(case, k).overhead()) for k in range(3))
        assert emulated > filtered > everything > 0
    for k in range(3):
        assert cell("multiplex-sampling", k).overhead() > cell("basic-sampling", k).overhead()


@pytest.mark.laws
def test_where_the_time_went_adds_up():
    for one in cells():
        assert sum(one.where().values()) == pytest.approx(1, abs=0.01)
        assert min(one.where().values()) > -0.005
        for alone, under in zip(one.alone, one.under, strict=True):
            assert under.pure + under.rest + sum(under.rows.values()) == pytest.approx(1)
            assert 0 <= under.rest < 0.02  # the guest kernel's own code
            assert alone.pure > 0.98


@pytest.mark.laws
def test_rates_emerge():
    for k in range(3):
        assert cell("basic-sampling", k).rate("perf_samples") == pytest.approx(6000, rel=0.05)
    for k in (1, 2):
        assert cell("multiplex-sampling", k).rate("perf_samples") == pytest.approx(9000, rel=0.05)
        assert cell("multiplex-sampling", k).rate("perf_rotations") == pytest.approx(250, rel=0.03)
        assert cell("basic-sampling", k).rate("perf_rotations") == 0
    assert all(one.rate("perf_unknown_nmis") == 0 for one in cells())


@pytest.mark.laws
@pytest.mark.parametrize(
    ("row", "most", "least"),
    [
        ("perf_event_pause", ("basic-sampling", 0), ("basic-sampling", 1)),
        ("kvm_mediated_pmu_load", ("multiplex-sampling", 2), ("multiplex-sampling", 0)),
        ("perf_event_overflow", ("multiplex-sampling", 1), None),
        ("perf_mux_hrtimer_handler", ("multiplex-sampling", 1), ("basic-sampling", 1)),
    ],
)
def test_doubling_a_cost_moves_the_cells_that_have_it(row, most, least):
    assert sensitivity(cell(*most))[row] > 0.002
    if least is not None:
        assert abs(sensitivity(cell(*least)).get(row, 0.0)) < 0.002


@pytest.mark.laws
@pytest.mark.parametrize("name", ["wrmsr", "vm_exit", "perf_event_overflow"])
def test_what_is_recomputed_is_what_a_run_gives(name):
    """A cell with one cost doubled: from the counts, and from a run with that cost."""
    one = cell("basic-sampling", 1)
    settings = {f"cost.{name}": 2 * MODEL.cost(name).cycles[1]}
    if name == "wrmsr":
        settings["model.wrmsr"] = 2 * MODEL.latency_of("wrmsr")
    (run,) = overhead.ask(
        question(designs=[designs()[1]], cases={"basic-sampling": 6}, settings=settings), jobs=2
    )
    assert float(run.overhead()) == pytest.approx(float(one.overhead({name: 2.0})), rel=0.05)


def test_a_doubled_row_of_the_guest_s_kernel_is_doubled_in_the_guest():
    settings = {"cost.perf_event_overflow": 2 * MODEL.cost("perf_event_overflow").cycles[1]}
    base = measure(question().task(designs()[1], "chase", 1, 6))
    more = measure(question(settings=settings).task(designs()[1], "chase", 1, 6))
    assert more.numbers["perf_nmi_ns"] / more.numbers["perf_nmis"] > (
        base.numbers["perf_nmi_ns"] / base.numbers["perf_nmis"]
        + 0.9 * MODEL.cost("perf_event_overflow").cycles[1] * 1e6 / MODEL.core_khz
    )


def test_low_and_high_are_the_5_and_the_95_percent_points():
    factors = drawn(MODEL, 15_000, 3)
    for name, (low, high) in intervals(MODEL).items():
        got = np.percentile(factors[name], [5, 50, 95])
        assert got == pytest.approx([low, 1.0, high], rel=0.08), name
    names = sorted(factors)
    for one, other in pairwise(names):
        assert abs(np.corrcoef(np.log(factors[one]), np.log(factors[other]))[0, 1]) < 0.05 or not np.ptp(
            factors[one]
        )
    assert all(np.array_equal(factors[name], drawn(MODEL, 15_000, 3)[name]) for name in names)


@pytest.mark.laws
def test_half_the_time_gives_the_same_cell():
    one = cell("basic-sampling", 1)
    _, _, ms = question().times(6)
    (half,) = overhead.ask(
        question(designs=[designs()[1]], cases={"basic-sampling": 6}, ms=ms / 2), jobs=2
    )
    assert float(half.overhead()) == pytest.approx(float(one.overhead()), rel=0.05)


def test_windows_are_long_enough():
    plan = question()
    for events in (6, 10):
        warm, settle, ms = plan.times(events)
        assert ms >= 30
        assert min(warm, settle) > 0
    assert plan.times(10)[2] >= 3 * 10 * 4  # three turns of ten events, 4 ms each
    assert question(cpu="skx").times(6)[2] >= 3 * 6 * 4  # which has half as many counters


@pytest.mark.laws
def test_the_same_question_has_the_same_answer():
    few = question(cases={"basic-sampling": 6}, designs=[designs()[2]], ms=3, warm_ms=3)
    one, other = (overhead_report.table(few, jobs=2) for _ in range(2))
    assert json.dumps(one) == json.dumps(other)


def test_published_figures_are_the_targets_of_the_table():
    published = {
        (case, design.label): Cell(design=design, case=case, alone=(), under=(), windows=()).published()
        for case in overhead.CASES
        for design in designs()[:3]
    }
    assert sorted(published.values()) == sorted(
        row.value[0] for row in FIGURES.values() if row.use == TARGET
    )


def test_every_assumption_has_a_reason():
    for one in ASSUMPTIONS.values():
        assert one.why
        assert not one.instead or one.changes
        assert set(one.instead) <= {"guest_hz", "host_hz", "defsym", "options"}
        if one.instead:
            other = overhead.instead(question(), one)
            assert other != question()
            for design in other.designs:
                overhead.check(other, design)


def test_every_figure_is_predicted_or_said_not_to_be():
    assert len(validation.PREDICTED) >= 8
    for name in validation.PREDICTED:
        assert FIGURES[name].use == "validation"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"workloads": "sort,mattrix"}, "no workload is named 'mattrix'; did you mean matrix"),
        ({"seeds": "1,x"}, "'1,x' is not a list of numbers"),
        ({"ms": 0.0}, "ms: 0 ms is not in the range"),
        ({"guest_hz": 0.5}, "guest-hz"),
        ({"defsym": ["FREQQ=4"]}, "did you mean FREQ"),
        ({"defsym": ["EVENTS=4"]}, "EVENTS is what this command sets itself"),
        ({"defsym": ["FREQ=0"]}, "FREQ=0 is not in the range"),
        ({"defsym": ["FREQ=100"]}, "300 to 100000"),
        ({"cpu": "sqr"}, "did you mean spr"),
        ({"settings": ["cost.vm_exitt=4"]}, "did you mean"),
        ({"hz": 333}, "no kernel has 333 ticks"),
    ],
)
def test_what_cannot_be_asked_is_refused(asked, words):
    with pytest.raises(ConfigError, match=words):
        question_of(asked)


def test_a_guest_that_cannot_go_on_is_an_error_with_its_words():
    with pytest.raises(ConfigError, match="CPUID leaf 0AH tells of none"):
        measure(Task(workload="sort", events=6, options={"vpmu": "none"}, warm_ms=5, ms=5))


def test_the_command_says_the_table(tmp_path):
    words = ["overhead", "--workloads", "chase", "--ms", "3", "--warm", "5", "--jobs", "2"]
    result = CliRunner().invoke(main, [*words, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [(c["case"], c["vpmu"]) for c in found["cells"]][:2] == [
        ("basic-sampling", "emulated"), ("basic-sampling", "passthrough --all-passthrough"),
    ]  # fmt: skip
    for c in found["cells"]:
        assert 0 < c["low"] <= c["typical"] <= c["high"] < 100
        assert {"published", "cycles", "numbers", "sensitivity", "error", "inside"} <= set(c)
    shown = CliRunner().invoke(main, [*words, "--plot"])
    assert "33.62" in shown.stdout
    assert "o predicted   x published" in shown.stdout
    wrong = CliRunner().invoke(main, [*words, "--plot", "x.gif"])
    assert wrong.exit_code == 2
    assert "neither a .png nor a .svg" in wrong.output


@pytest.mark.laws
def test_a_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    found = {"cells": [overhead_report.row(one, drawn(MODEL, 200, 1)) for one in cells()]}
    for name in ("table.svg", "table.png"):
        overhead_report.plot(found, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 2000
    first = (tmp_path / "table.svg").read_bytes()
    overhead_report.plot(found, tmp_path / "table.svg")
    assert (tmp_path / "table.svg").read_bytes() == first


@pytest.mark.laws
def test_the_six_cells_lie_where_they_were_measured():
    """Order, intervals and their width, the typical value, and three seeds."""
    found = overhead_report.table(Question(designs=designs()[:3]))
    for c in found["cells"]:
        assert c["inside"], c
        assert c["high"] <= 1.6 * c["low"], c
        assert abs(c["error"]) <= 0.25, c
        name = [c["case"], *c["vpmu"].split()]
        (line,) = [row for row in README.splitlines() if row.split()[:-6] == name]
        assert f"{c['low']:.2f} {c['typical']:.2f} {c['high']:.2f}" in " ".join(line.split())


@pytest.mark.laws
def test_half_the_time_and_other_seeds_give_the_same_cells():
    """On three workloads: on one, events whose overflows have met and stay together move a cell by 10 %."""
    three = ("chase", "hash", "sort")
    whole = overhead.ask(question(workloads=three), jobs=2)
    halves = []
    for case, events in overhead.CASES.items():
        half = question().times(events)[2] / 2
        halves += overhead.ask(question(workloads=three, cases={case: events}, ms=half), jobs=2)
    by_seed = [overhead.ask(question(workloads=three, seeds=(seed,)), jobs=2) for seed in (2, 3)]
    for others in (halves, *by_seed):
        for one, other in zip(whole, others, strict=True):
            assert float(other.overhead()) == pytest.approx(float(one.overhead()), rel=0.05), one.case


@pytest.mark.laws
@pytest.mark.parametrize(("case", "design"), [("basic-sampling", 0), ("multiplex-sampling", 2)])
@pytest.mark.parametrize("level", [0, 1])
def test_both_ends_are_what_full_runs_give(case, design, level):
    """All costs at one end at once: recomputed, and run."""
    ends = {name: pair[level] for name, pair in intervals(MODEL).items()}
    settings = {
        name if name.startswith("model.") else f"cost.{name}": max(
            round(
                (MODEL.latency_of(name[6:]) if name.startswith("model.") else MODEL.cost(name).cycles[1])
                * end
            ),
            1,
        )
        for name, end in ends.items()
    }
    for name, row in overhead.SAME_SILICON.items():
        settings[f"model.{name}"] = round(MODEL.latency_of(name) * ends[row])
    events = overhead.CASES[case]
    (plain,) = overhead.ask(question(designs=[designs()[design]], cases={case: events}))
    (run,) = overhead.ask(question(designs=[designs()[design]], cases={case: events}, settings=settings))
    assert float(run.overhead()) == pytest.approx(float(plain.overhead(ends)), rel=0.1)


@pytest.mark.laws
def test_three_of_four_figures_lie_in_their_intervals():
    found = validation.validate()
    assert sum(row["inside"] for row in found) >= 0.75 * len(found), found


def test_workloads_are_all_there():
    assert len(WORKLOADS) == 8
