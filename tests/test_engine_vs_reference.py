"""The compiled engine and the reference end every random program in the same state."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from tests.reference import generator
from tests.reference.compare import differences

pytest.importorskip("iced_x86")


def agree(text: str) -> None:
    found = differences(text)
    assume(found is not None)
    assert not found, "reference against engine:\n" + "\n".join(found or []) + "\n" + text


@settings(deadline=None)
@given(generator.integer())
def test_integer_programs(text: str) -> None:
    agree(text)


@settings(deadline=None)
@given(generator.agreement())
def test_counting_programs(text: str) -> None:
    agree(text)


@settings(deadline=None)
@given(generator.anything())
def test_programs_with_running_reads_overflows_pmis_and_faults(text: str) -> None:
    agree(text)


@pytest.mark.parametrize("kind", sorted(generator.MAKERS))
def test_fixed_seeds(kind: str) -> None:
    """A stable set besides the random one: it fails the same way for everybody."""
    judged = 0
    for seed in range(20):
        text = generator.from_seed(kind, seed)
        found = differences(text)
        if found is None:
            continue
        judged += 1
        assert not found, f"{kind} seed {seed}:\n" + "\n".join(found)
    assert judged >= 15
