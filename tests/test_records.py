"""Every guest in every mode leaves what tests/records.txt says: by day a sample, in laws all."""

from __future__ import annotations

import lzma

import pytest

from tests.tools import records, same_records
from vpmu_emu._jit import COMPILES

pytestmark = pytest.mark.uncompiled

NAMES = records.names()
DAY = [name for k, name in enumerate(NAMES) if name.startswith("lessons/") or k % 32 == 0]
PARTS = 8
HINT = "if that is meant: `python -m tests.tools.records renew` (docs/contributing.md)"

compiled = pytest.mark.skipif(not COMPILES, reason="hundreds of whole runs")


def same(wanted):
    lines = records.compare(wanted)
    assert lines == [], "\n".join([*lines[:60], f"{len(lines)} in all; {HINT}"])


@compiled
def test_a_sample_is_as_stored():
    same(DAY)


@compiled
@pytest.mark.laws
@pytest.mark.parametrize("part", range(PARTS))
def test_every_run_is_as_stored(part):
    same(NAMES[part::PARTS])


def test_every_run_is_stored():
    """A guest or a mode that is new needs its lines, one that is gone leaves none."""
    assert sorted(same_records.names("all")) == sorted(NAMES), HINT


# --- the text -------------------------------------------------------------------------------------------

RUNS = {
    "lessons/a.s bare": {"cores.t": "[0]=5", "memory": "aa"},
    "lessons/b.s bare": {"cores.t": "[0]=5", "cores.pmu.gp": "[0,1]=7", "memory": "bb"},
    "lessons/c.s bare": {"memory": "cc"},
    "lessons/a.s emulated": {"cores.t": "[0]=9", "memory": "aa"},
}


def test_what_is_written_is_read():
    assert records.read(records.write(RUNS)) == RUNS


def test_one_value_that_changes_is_one_line():
    changed = {**RUNS, "lessons/b.s bare": {**RUNS["lessons/b.s bare"], "cores.pmu.gp": "[0,1]=8"}}
    old, new = (records.write(runs).splitlines() for runs in (RUNS, changed))
    assert [(a, b) for a, b in zip(old, new, strict=True) if a != b] == [
        ("cores.pmu.gp [0,1]=7", "cores.pmu.gp [0,1]=8")
    ]


@pytest.mark.parametrize(
    ("leaves", "words"),
    [
        ({"a[0].b[0]": 1, "a[0].b[2]": 3}, "[0,0]=1 [0,2]=3"),
        ({"b[3]": 1, "b[4]": 1, "b[5]": 2, "b[7]": 2}, "[3-4]=1 [5]=2 [7]=2"),
        ({"b": 18446744073709551615}, "18446744073709551615"),
        ({"b": "00ff"}, "00ff"),
    ],
)
def test_elements_in_words(leaves, words):
    (text,) = records.by_field(leaves).values()
    assert text == words


def test_long_fields_differ_by_their_hash():
    long = {f"b[{k}]": k * k for k in range(1, 40)}
    (one,), (other,) = (records.by_field(found).values() for found in (long, {**long, "b[30]": 1}))
    assert one != other
    assert one[0] == other[0] == "#"


def test_only_moves_that_are_named_are_no_difference():
    old = {"cores.pmu.gp": "[0,1]=7", "cores.old": "3", "cores.t": "5"}
    new = {"cores.silicon.gp": "[0,1]=7", "cores.t": "6", "cores.fresh": "1"}
    named = ({"cores.pmu": "cores.silicon"}, ["cores.old"], ["cores.fresh"])
    assert same_records.differences(old, new, *named) == ["cores.t: was 5, is 6"]
    assert len(same_records.differences(old, new, {}, [], [])) == 5


def test_the_text_is_small():
    assert len(lzma.compress(records.BASELINE.read_bytes())) < 300_000
