"""The random programs do what their names say, or the comparisons that use them are empty."""

from __future__ import annotations

from collections import Counter

import pytest

from vpmu_emu.asm import assemble

from . import generator_system  # noqa: F401  (registers its makers)
from .compare import memory_differences, outcome_differences, reference_run
from .generator import MAKERS, from_seed
from .modes import EXITS
from .pmu import Shape

PROGRAMS = 40


def seen(kind: str) -> Counter[str]:
    """What happened in the first programs of a kind, in programs that had it at least once."""
    found: Counter[str] = Counter()
    for seed in range(PROGRAMS):
        program = assemble(from_seed(kind, seed))
        outcome, ref = reference_run(program, Shape(), 60_000)
        features = {outcome.stop}
        features |= {"tainted"} if ref.tainted else set()
        features |= {"pmi"} if ref.pmis else set()
        features |= {"overflow"} if ref.pmi_log else set()
        features |= {f"vector {vector}" for _, vector in ref.delivered}
        features |= {"counted"} if any(outcome.gp) or outcome.fixed[0] else set()
        found.update(features)
    return found


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_programs_end_and_are_defined(kind: str) -> None:
    found = seen(kind)
    assert found["debug-exit"] + found["halted"] == PROGRAMS
    assert found["debug-exit"] >= 0.9 * PROGRAMS
    assert found["tainted"] <= 0.1 * PROGRAMS


@pytest.mark.parametrize(
    ("kind", "features"),
    [
        ("agreement", {"counted": 20}),
        ("running", {"counted": 30}),
        ("anything", {"pmi": 8, "overflow": 10, "counted": 20, "vector 80": 3, "vector 2": 2}),
        ("events", {"pmi": 4, "vector 13": 2, "vector 49": 5, "vector 2": 4, "vector 6": 1}),
        ("paging", {"vector 14": 8}),
    ],
)
def test_programs_reach_what_they_are_for(kind: str, features: dict[str, int]) -> None:
    found = seen(kind)
    short = {name: (found[name], least) for name, least in features.items() if found[name] < least}
    assert short == {}, "feature: (programs that have it, wanted)"


def test_running_programs_tell_the_modes_apart() -> None:
    """Where nothing differs between modes, a prediction would be worth nothing."""
    differ = Counter()
    shape = Shape(version=2, fixed=3)
    for seed in range(PROGRAMS):
        program = assemble(from_seed("running", seed))
        bare, _ = reference_run(program, shape, 60_000)
        for mode, exits in EXITS.items():
            other, _ = reference_run(program, shape, 60_000, exits=exits)
            differ[mode] += bool(outcome_differences(program, bare, other))
    assert min(differ.values()) >= 5, differ


def test_a_comparison_sees_every_field() -> None:
    program = assemble(from_seed("agreement", 1))
    a, _ = reference_run(program, Shape(), 60_000)
    assert outcome_differences(program, a, a) == []
    for field in ("stop", "rip", "fixed_ctrl", "global_ctrl", "status", "serial", "retired", "rflags"):
        b, _ = reference_run(program, Shape(), 60_000)
        value = getattr(b, field)
        setattr(b, field, value + "x" if isinstance(value, str) else value ^ 1)
        assert len(outcome_differences(program, a, b)) == 1, field
    for field in ("registers", "gp", "selectors", "fixed"):
        b, _ = reference_run(program, Shape(), 60_000)
        getattr(b, field)[0] ^= 1 << 40
        assert len(outcome_differences(program, a, b)) == 1, field
    at = program.symbols["results"] + 8
    changed = bytearray(a.memory)
    changed[at] ^= 1
    assert len(memory_differences(program, a.memory, bytes(changed))) == 1
