"""Deliberate bugs: a table of bits, refused by name where unknown, invisible while none is chosen."""

from __future__ import annotations

import re
from collections import Counter

import attrs
import pytest
from click.testing import CliRunner

from tests.conftest import ROOT
from tests.test_conformance import LONG
from tests.tools import mutants
from tests.tools.mutants import failures, guests
from tests.tools.whole import lesson, machine, state
from vpmu_emu.cli import main
from vpmu_emu.errors import ConfigError
from vpmu_emu.tables.mutants import MUTANTS, inject_bits, mutant, unchecked_msrs


@pytest.mark.uncompiled
def test_the_table():
    assert Counter(row.group for row in MUTANTS) == {"conformance": 32, "selftest": 4, "kernel": 5}
    assert [int(row.bit) for row in MUTANTS] == [1 << k for k in range(len(MUTANTS))]
    assert len({row.name for row in MUTANTS}) == len({row.doc for row in MUTANTS}) == len(MUTANTS)
    assert all(row.doc.endswith(".") for row in MUTANTS)


@pytest.mark.uncompiled
def test_bits():
    names = [MUTANTS[0].name, MUTANTS[5].name]
    assert int(inject_bits(names)) == int(inject_bits([*names, *names])) == 0b100001
    assert int(inject_bits([])) == 0
    assert unchecked_msrs(0) == ()
    assert unchecked_msrs(int(mutant("pmc-width-unchecked").bit)) == ("IA32_A_PMC",)


@pytest.mark.uncompiled
def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean pmi-never-raised"):
        machine(lesson("01_count"), "bare", inject=["pmi-never-rised"])
    found = CliRunner().invoke(main, ["check", "--inject", "pmi-never-rised", "guests/lessons/01_count.s"])
    assert found.exit_code == 2
    assert "did you mean pmi-never-raised" in found.output


@pytest.mark.uncompiled
@pytest.mark.parametrize("mode", ["bare", "emulated", "passthrough"])
def test_a_bug_is_a_field_of_the_record_only(mode):
    plain = machine(lesson("01_count"), mode)
    broken = machine(lesson("01_count"), mode, inject=["fixed0-counts-double"])
    assert state(plain) != state(broken)
    broken.core.inject = plain.core.inject
    assert state(plain) == state(broken)


FOUND_BY_GUESTS = [row for row in MUTANTS if not row.killer.startswith("tests/")]


def marked(row):
    long = row.killer.split("/")[-1] in LONG
    return pytest.param(row, id=row.name, marks=[] if long else [pytest.mark.uncompiled])


@pytest.mark.parametrize("row", [marked(row) for row in FOUND_BY_GUESTS])
def test_the_guest_of_the_table_finds_the_bug(row):
    path = ROOT / "guests" / row.killer
    assert path in guests()
    (failure,) = failures([row.name], [path])
    assert failure.path == path
    assert ": expected " in failure.value or "case " in failure.value


@pytest.mark.uncompiled
def test_what_no_guest_sees_a_test_does():
    rest = [row for row in MUTANTS if row not in FOUND_BY_GUESTS]
    assert {row.group for row in rest} == {"kernel"}
    for row in rest:
        assert f'"{row.name}"' in (ROOT / row.killer).read_text(encoding="utf-8")


@pytest.mark.uncompiled
def test_no_bug_is_found_by_nobody():
    path = ROOT / "guests" / "lessons" / "01_count.s"
    assert list(failures((), [path])) == []


@pytest.mark.uncompiled
def test_the_report(monkeypatch, capsys):
    few = [ROOT / "guests" / "lessons" / "01_count.s", ROOT / "guests" / "conformance" / "p01_rdpmc_64.s"]
    monkeypatch.setattr(mutants, "guests", lambda: few)
    assert mutants.main(["rdpmc-64-accepted", "fixed0-counts-double", "no-lvtpc-mask"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "green     2 guests without a bug"
    assert lines[1] == "found     rdpmc-64-accepted: p01_rdpmc_64"
    assert lines[2].strip() == "conformance/p01_rdpmc_64.s [bare] case 0x100: expected 13, got 0"
    assert lines[3] == "found     fixed0-counts-double: 01_count"
    assert re.search(r"01_count\.s \[bare\] line \d+: fixed0 == .*: expected \d+, got \d+", lines[4])
    assert lines[5] == "survived  no-lvtpc-mask"
    assert lines[6] == "survived  none"
    assert lines[-1] == "found 2 of 3"
    assert mutants.main(["rdpmc-64-accepted"]) == 0
    # A guest that fails without a bug proves nothing, and is itself a reason to fail.
    broken = attrs.evolve(mutants.guest(few[1])[1], args=("--inject", "rdpmc-64-accepted"))
    program = mutants.guest(few[1])[0]
    plain = mutants.guest
    monkeypatch.setattr(mutants, "guest", lambda p: (program, broken) if p == few[1] else plain(p))
    assert mutants.main(["rdpmc-64-accepted"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("RED ") for line in lines)
    assert lines[-1] == "found 0 of 1"
