"""Deliberate bugs: a table of bits, refused by name where unknown, invisible while none is chosen."""

from __future__ import annotations

from collections import Counter

import pytest
from click.testing import CliRunner

from tests.whole import lesson, machine, state
from vpmu_emu.cli import main
from vpmu_emu.tables.mutants import MUTANTS, inject_bits, mutant, unchecked_msrs
from vpmu_emu.tables.names import UnknownNameError

pytestmark = pytest.mark.uncompiled


def test_the_table():
    assert Counter(row.group for row in MUTANTS) == {"conformance": 32, "selftest": 4, "kernel": 4}
    assert [int(row.bit) for row in MUTANTS] == [1 << k for k in range(len(MUTANTS))]
    assert len({row.name for row in MUTANTS}) == len({row.doc for row in MUTANTS}) == len(MUTANTS)
    assert all(row.doc.endswith(".") for row in MUTANTS)


def test_bits():
    names = [MUTANTS[0].name, MUTANTS[5].name]
    assert int(inject_bits(names)) == int(inject_bits([*names, *names])) == 0b100001
    assert int(inject_bits([])) == 0
    assert unchecked_msrs(0) == ()
    assert unchecked_msrs(int(mutant("pmc-width-unchecked").bit)) == ("IA32_A_PMC",)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean pmi-never-raised"):
        machine(lesson("01_count"), "bare", inject=["pmi-never-rised"])
    found = CliRunner().invoke(main, ["check", "--inject", "pmi-never-rised", "guests/lessons/01_count.s"])
    assert found.exit_code == 2
    assert "did you mean pmi-never-raised" in found.output


@pytest.mark.parametrize("mode", ["bare", "emulated", "passthrough"])
def test_a_bug_is_a_field_of_the_record_only(mode):
    plain = machine(lesson("01_count"), mode)
    broken = machine(lesson("01_count"), mode, inject=["fixed0-counts-double"])
    assert state(plain) != state(broken)
    broken.core.inject = plain.core.inject
    assert state(plain) == state(broken)
