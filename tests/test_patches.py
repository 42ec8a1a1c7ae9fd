"""Each patch of the series has a guest, and the tool that runs them notices what it should."""

from __future__ import annotations

import attrs
import pytest

from tests.tools import patches
from vpmu_emu._jit import COMPILES
from vpmu_emu.checks.perturb import perturbed
from vpmu_emu.tables.patches import PATCHES

LONG = {2, 3}  # seconds without the compiler


def test_every_row_has_one_guest_and_no_guest_is_beside():
    found = [patches.guest_of(row).name for row in patches.ROWS]
    assert sorted(found) == sorted(path.name for path in patches.FOLDER.glob("*.s"))
    assert len({PATCHES[row.number].shows for row in patches.ROWS}) >= 30


def test_what_the_table_names():
    for row in patches.ROWS:
        assert set(row.reddens) <= set(PATCHES) - {row.number, 41}
        assert row.partner == 0 or f"--without {row.partner}" in patches.guest_of(row).read_text()


def test_nobody_reads_what_is_left_out():
    """The record has it in one place, and neither guests nor expectations have a name for that."""
    for row in patches.ROWS:
        expectations = patches.guest(row)[1].expectations
        assert expectations
        for one in expectations:
            assert "without" not in one.text
            assert list(perturbed(one, 1, 1))


@pytest.mark.uncompiled
@pytest.mark.parametrize("number", [row.number for row in patches.ROWS])
def test_green_with_it_and_red_without(number):
    if number in LONG and not COMPILES:
        pytest.skip("seconds without the compiler")
    row = PATCHES[number]
    assert patches.look(row, ()).green
    off = patches.look(row, (number,))
    assert not off.green
    assert off.observed


def test_the_tool_tells_what_is_not_as_the_table_says(monkeypatch):
    seen = {n: patches.Seen(n not in (7, 8), "x == 1", "0") for n in (6, 7, 8)}
    monkeypatch.setitem(PATCHES, 7, attrs.evolve(PATCHES[7], reddens=(8,)))
    assert patches.undeclared(7, seen) == []
    monkeypatch.setitem(PATCHES, 7, attrs.evolve(PATCHES[7], reddens=(6,)))
    assert patches.undeclared(7, seen) == [
        "without 07 row 08 is red, and not named", "without 07 row 06 is green, and named",
    ]  # fmt: skip
