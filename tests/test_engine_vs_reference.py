"""The compiled engine and the reference end every random program in the same state."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings

from tests.reference import generator, generator_system
from tests.reference.compare import differences, expected_in_mode
from tests.reference.modes import EXITS
from tests.reference.pmu import Shape
from vpmu_emu.tables.modes import MODES

pytest.importorskip("iced_x86")


def agree(text: str) -> None:
    found = differences(text)
    assume(found is not None)
    assert not found, "\n".join(["reference against engine:", *(found or []), *body(text)])


def body(text: str) -> list[str]:
    """The part of a program that is its own, without the tables and handlers all of them share."""
    lines = text.splitlines()
    start = lines.index("lidt [rip + idtr]") + 1 if "lidt [rip + idtr]" in lines else 4
    handlers = [i for i, line in enumerate(lines) if line in ("plain_fault:", "log_pair:")]
    end = handlers[0] if handlers else len(lines)
    return lines[start:end]


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


@settings(deadline=None)
@given(generator_system.events())
def test_programs_of_interrupts_rings_and_system_calls(text: str) -> None:
    agree(text)


@settings(deadline=None)
@given(generator_system.xapic())
def test_programs_that_use_the_page_of_the_apic(text: str) -> None:
    agree(text)


@settings(deadline=None)
@given(generator_system.paging())
def test_programs_with_page_tables(text: str) -> None:
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


@pytest.mark.parametrize("mode", [m for m in MODES if m not in ("bare", "none")])
def test_vpmus_agree_with_the_reference_within_the_agreement_class(mode: str) -> None:
    """Closed windows of C0 and C4: every vPMU counts what bare silicon counts."""
    for seed in range(100, 140):
        found = differences(generator.from_seed("agreement", seed), vpmu=mode)
        assert found == [], f"{mode}, agreement seed {seed}:\n" + "\n".join(found or [])


@pytest.mark.parametrize("mode", sorted(EXITS))
def test_running_reads_in_a_vm_are_predicted_by_what_exits(mode: str) -> None:
    """Outside of the class the vPMUs differ from silicon exactly as their exits say."""
    for seed in range(40):
        found = expected_in_mode(generator.from_seed("running", seed), mode)
        assert not found, f"{mode}, running seed {seed}:\n" + "\n".join(found or [])


SHAPES = [
    {"version": 2, "fixed": 3},
    {"version": 2, "gp": 4, "fixed": 3, "width": 40},
    {"version": 3, "fixed": 3, "perf_caps": 0},
    {"version": 4, "fixed": 3},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_other_pmus(shape: dict[str, int]) -> None:
    """Absent counters and registers fault, and what is there counts, in both machines alike."""
    settings = {f"pmu.{name}": value for name, value in shape.items()}
    model = Shape(**shape, fixed_width=shape.get("width", 48))
    for kind in ("agreement", "anything"):
        for seed in range(200, 215):
            text = generator.from_seed(kind, seed)
            found = differences(text, shape=model, settings=settings)
            assert not found, f"{kind} seed {seed}:\n" + "\n".join(found or [])
