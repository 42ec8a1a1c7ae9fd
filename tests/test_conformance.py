"""Every row of the public suites has a guest or a reason; guests hold and notice altered constants."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.asm.gnu import assert_gnu_makes
from tests.conftest import ROOT
from tests.tools.conformance import FOLDER, GUESTS, ROWS, guest, guests_of, text
from vpmu_emu.checks import check_program, run_as_asked

# Too long for an engine that is not compiled.
LONG = {
    "b01_b05_pebs.s", "p02_ref_crystal.s", "p03_emulated_instr.s", "p06_arch_events.s", "p07_fixed.s",
    "p12_all_counters.s", "p13_overflow.s", "p17_cmask.s", "p18_running_write.s", "p21_width.s",
    "x_lvtpc_mask.s", "x_os_bit.s", "x_overflow_boundary.s",
}  # fmt: skip


def marked(path):
    marks = [] if path.name in LONG else [pytest.mark.uncompiled]
    return pytest.param(path, id=path.stem, marks=marks)


guests = pytest.mark.parametrize("path", [marked(path) for path in GUESTS])


@guests
def test_the_guest_holds_and_is_not_blind(path):
    program, plan = guest(path)
    with np.errstate(over="ignore"):
        report = check_program(program, plan, run_as_asked, perturb=True)
    assert report.verdicts, report.error
    assert [str(verdict) for verdict in report.verdicts if not verdict.ok] == []
    assert list(report.blind) == []


# Other hosts, and so other guests: without full-width writes, with an odd number of counters, with narrow
# ones, older models; guests that have less than their host or more than KVM merged gives them; selectors
# that do not exit. The kit's results hold on all of them; what the expectations count does not.
SHAPES = (
    ("--set", "pmu.perf_caps=0"),
    ("--set", "pmu.gp=7", "--set", "pmu.fixed=3"),
    ("--set", "pmu.gp=4", "--set", "pmu.width=40"),
    ("--cpu", "icx"),
    ("--cpu", "skx"),
    ("--guest", "pmu.gp=5"),
    ("--kvm", "fixed_cap=4"),
    ("--all-passthrough",),
)
OF_ANY_SHAPE = [path for path in GUESTS if path.name.startswith("p")] + [
    FOLDER / f"x_{name}.s"
    for name in ("fixed_pmi", "lvtpc_mask", "os_bit", "overflow_boundary", "status_reset")
]


@pytest.mark.few(36)
@pytest.mark.parametrize("shape", SHAPES, ids=" ".join)
@pytest.mark.parametrize("path", OF_ANY_SHAPE, ids=lambda path: path.stem)
def test_the_guest_finds_nothing_wrong_with_other_shapes(path, shape):
    _, plan = guest(path)
    # Nothing but the series lets selectors pass, and what was merged wants full-width writes.
    only = {"--all-passthrough": ("passthrough",), "pmu.perf_caps=0": set(plan.modes) - {"mediated"}}
    finds_nothing(path, shape, only.get(shape[-1], plan.modes))


def finds_nothing(path, shape, modes):
    program, plan = guest(path)
    for mode in modes:
        outcome = run_as_asked(program, mode, plan.cpu, (*plan.args, *shape))
        found = {
            name: int.from_bytes(outcome.read(program.symbols[name], 8), "little")
            for name in ("checks", "failures", "first_bad", "first_got", "first_want")
        }
        assert outcome.values["exit_code"] == 0, mode
        assert found["failures"] == 0, (mode, found)
        assert found["checks"] > 0, mode


@guests
def test_the_guest_says_what_it_stands_for(path):
    _, plan = guest(path)
    assert plan.rows, "say `#: row`"
    assert plan.upstream or all(row.startswith("X-") for row in plan.rows), "say `#: upstream`"
    assert {mode for e in plan.expectations for mode in e.modes} == set(plan.modes)
    assert [row for row in plan.rows if not row.startswith("X-") and row not in ROWS] == []
    # p06_arch_events.s, x_os_bit.s: the first of its rows.
    row = plan.rows[0]
    name = re.sub(r"(\D)(\d)$", r"\g<1>0\2", row.lower().replace("-", "_"))
    assert path.stem.startswith(f"{name}_") or (path.stem == name and row.startswith("X-"))


@pytest.mark.uncompiled
@pytest.mark.parametrize("row", ROWS)
def test_the_row_has_a_guest_or_a_reason(row):
    assert bool(guests_of(row)) != bool(ROWS[row].get("outside"))


@pytest.mark.uncompiled
def test_the_page_is_true():
    written = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
    assert written == text(), "run `python -m tests.tools.conformance`"


@pytest.mark.uncompiled
def test_nothing_else_is_in_the_folder():
    # Filters and C sources may stand beside the guest that names them.
    for path in FOLDER.iterdir():
        assert path in GUESTS or path.name == "rows.toml" or (FOLDER / f"{path.stem}.s") in GUESTS


@pytest.mark.oracle
@guests
def test_gnu_as_makes_the_same_bytes(path, tmp_path):
    program, _ = guest(path)
    assert_gnu_makes(program, path, tmp_path)
