"""kvm-unit-tests' pmu rows as tests/tools/pmu_suite.py has them: every row passes in every mode."""

from __future__ import annotations

import pytest

from tests.tools.pmu_suite import CONFIGS, MODES, OWN_LENGTHS, SHORT, run, summary

FIRST = CONFIGS[0]
by_mode = pytest.mark.parametrize("mode", MODES)
by_config = pytest.mark.parametrize("c", CONFIGS, ids=lambda c: c.name)
# results as the suite counts them: with the forced emulation prefix, without it
RESULTS = {
    "all of it": (259, 251), "no full-width writes": (126, 122), "four counters": (151, 143),
    "MSR lists for GLOBAL_CTRL": (259, 251), "PMIs as NMIs": (259, 251), "version 1": (75, 75),
}  # fmt: skip


def judged(c, mode, **lengths):
    outcomes = run(c, mode, **lengths)
    assert [str(o) for o in outcomes if o.ok is False] == []
    assert len(outcomes) == RESULTS[c.name][mode == "bare"]
    # the fast form of RDPMC is #GP on every architectural PMU: skipped, and nothing else
    assert sum(o.ok is None for o in outcomes) == (c.gp + c.fixed) * (1 + c.full_width)
    return outcomes


@by_mode
def test_every_row_passes(mode):
    judged(FIRST, mode, **SHORT)


@pytest.mark.laws
@by_config
@by_mode
def test_every_row_passes_with_the_suites_own_lengths(c, mode, capsys):
    lengths = OWN_LENGTHS if c is FIRST else {**OWN_LENGTHS, "rounds": 100_000, "calibration": 10_000_000}
    outcomes = judged(c, mode, **lengths)
    with capsys.disabled():
        print(f"\n{summary(c, mode, outcomes)}")


def test_a_wrong_count_is_told_by_name_and_value(monkeypatch):
    """The judge is no rubber stamp: with another range a row fails, and says which and what it had."""
    monkeypatch.setattr("tests.tools.pmu_suite.EVENTS", (("core cycles", 0x003C, 60, 70),))
    lengths = {"rounds": 200, "calibration": 1000, "polls": 10}
    failed = [o for o in run(CONFIGS[5], "bare", **lengths) if o.ok is False]
    names = [f"Intel: core cycles-{i}" for i in range(8)] + ["Intel: all counters"]
    assert [o.name for o in failed] == names
    assert "Intel: core cycles-0: " in str(failed[0])
