"""The lessons hold in every mode they name, notice every altered constant, and are GNU as sources."""

from __future__ import annotations

import numpy as np
import pytest

from tests.asm.gnu import assert_gnu_makes
from tests.conftest import ROOT
from vpmu_emu.asm import assemble_file
from vpmu_emu.checks import check_program, read_plan

LESSONS = sorted((ROOT / "guests" / "lessons").glob("*.s"))
MODES = ("bare", "emulated", "passthrough", "mediated")

lessons = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)


def plan_of(path, program):
    lines = [(line.line, line.text) for line in program.expectations]
    return read_plan(path.name, lines, program, MODES)


def runner(path):
    from vpmu_emu.options import parse
    from vpmu_emu.system import run

    def in_mode(program, mode, cpu, args):
        # Without a hypervisor there is nobody to filter: the lesson shows just that.
        asked = parse(args, vpmu=mode, cpu=cpu or "spr").heeded()
        name = asked.filter and path.parent / asked.filter
        with np.errstate(over="ignore"):
            return run(program, asked, filter=name, host=[path.parent / p for p in asked.host])

    return in_mode


@pytest.mark.uncompiled
@lessons
def test_the_lesson_holds_and_is_not_blind(path):
    program = assemble_file(path)
    report = check_program(program, plan_of(path, program), runner(path), perturb=True)
    assert [str(verdict) for verdict in report.verdicts if not verdict.ok] == []
    assert list(report.blind) == []


@lessons
def test_the_lesson_names_every_mode(path):
    program = assemble_file(path)
    plan = plan_of(path, program)
    assert plan.modes == MODES
    assert {mode for e in plan.expectations for mode in e.modes} == set(MODES)
    assert any("exit_code" in e.text for e in plan.expectations)


@pytest.mark.oracle
@lessons
def test_gnu_as_makes_the_same_bytes(path, tmp_path):
    assert_gnu_makes(assemble_file(path), path, tmp_path)
