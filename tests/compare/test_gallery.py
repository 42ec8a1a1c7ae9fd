"""Each bug of the gallery has a guest that is green without its switch and red with it."""

from __future__ import annotations

import json

import attrs
import pytest
from click.testing import CliRunner

from tests.conftest import ROOT
from vpmu_emu.cli import main
from vpmu_emu.compare.gallery import look, path_of
from vpmu_emu.tables.bugs import BUGS, bug, bugs_md
from vpmu_emu.tables.divergences import DIVERGENCES
from vpmu_emu.tables.modes import MODES

DAY = (
    "lvtpc-not-unmasked", "no-global-check", "period-floor", "fixed-filter-bypass",
    "status-cleared-then-set",
)  # fmt: skip
ROWS = [pytest.param(row, id=row.name, marks=[] if row.name in DAY else [pytest.mark.laws]) for row in BUGS]


@pytest.mark.uncompiled
def test_the_table():
    assert len({row.name for row in BUGS}) == len({row.title for row in BUGS}) == len(BUGS)
    assert set(DAY) < {row.name for row in BUGS}
    for row in BUGS:
        assert path_of(row).is_file(), row.name
        assert row.mode in MODES
        assert row.switch[0].startswith("--")
        assert len(row.text) > 200, "a page of text"
        assert not row.row or row.row in DIVERGENCES
    used = {path_of(row) for row in BUGS}
    assert set((ROOT / "guests" / "bugs").glob("*.s")) <= used
    assert bugs_md() == (ROOT / "docs" / "bugs.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("row", ROWS)
def test_green_without_and_red_with_it(row):
    found = look(row)
    assert found.without.ok, found.without
    assert found.with_it.failed, found.with_it
    assert not found.with_it.error
    assert found.ok


def test_a_switch_without_effect_is_no_bug():
    """And neither is a guest that is red anyway."""
    row = bug("no-global-check")
    assert not look(attrs.evolve(row, switch=())).ok
    assert not look(attrs.evolve(row, guest="bugs/period_floor.s", mode="emulated")).ok


def guests(*words: str):
    return CliRunner().invoke(main, ["guests", *words])


@pytest.mark.uncompiled
def test_the_list():
    found = guests("--bugs")
    assert found.exit_code == 0
    assert all(row.name in found.output for row in BUGS)
    values = json.loads(guests("--bugs", "--json").stdout)["bugs"]
    assert [row["name"] for row in values] == [row.name for row in BUGS]


def test_one_that_is_named_is_run():
    found = guests("--bugs", "period-floor")
    assert found.exit_code == 0
    assert "without --vpmu emulated:\nok " in found.output
    assert "with --vpmu emulated:\nFAILED" in found.output
    assert bug("period-floor").text in found.output
    values = json.loads(guests("--bugs", "period-floor", "--json").stdout)["bugs"]
    assert [(row["name"], row["ok"]) for row in values] == [("period-floor", True)]


@pytest.mark.uncompiled
@pytest.mark.parametrize(("words", "said"), [
    (["--bugs", "period-flor"], "did you mean period-floor"),
    (["--bugs", ""], "bug"),
    (["period-floor"], "bugs are named after --bugs"),
])  # fmt: skip
def test_bad_input_is_one_sentence(words, said):
    found = guests(*words)
    assert found.exit_code == 2
    assert said in found.output
    assert "Traceback" not in found.output
