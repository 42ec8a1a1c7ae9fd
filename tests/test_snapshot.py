"""Restore and run on equals running on: at any point, in any mode, with any number of cores."""

from __future__ import annotations

import random

import pytest

from tests.conftest import ROOT
from tests.tools.profiles import cases
from tests.tools.whole import LESSONS, lesson, lesson_options, machine, seeded
from vpmu_emu.asm import assemble_file
from vpmu_emu.errors import ConfigError
from vpmu_emu.tables.modes import MODES

KINDS = ("integer", "anything", "running")
HOST = ROOT / "guests" / "host"


def everything(system, stop) -> tuple:
    result = system.result(stop)
    values = result.to_json()
    for key in ("wall_s", "jit_s", "engine"):
        values.pop(key)
    return result.record, bytes(result.memory), values, system.events().tobytes()


def goes_on_alike(make, rng: random.Random) -> None:
    """Run on from a random point, from the same point again, and again in a new machine."""
    system = make()
    slices = rng.randrange(4)
    for _ in range(slices):
        system._turn(rng.choice((1, 100, 1 << 10, 1 << 14)))
    system.step(rng.randrange(1, 60))
    saved = system.snapshot()
    assert system.snapshot() == saved
    first = everything(system, system.run())
    system.restore(saved)
    assert system.snapshot() == saved
    assert everything(system, system.run()) == first
    other = make()
    other.restore(saved)
    record, memory, values, _ = everything(other, other.run())
    assert (record, memory, values) == first[:3]


@pytest.mark.parametrize("mode", list(MODES))
@pytest.mark.parametrize("name", LESSONS)
def test_lessons_go_on_alike(name, mode):
    rng = random.Random(f"{name} {mode}")
    for _ in range(cases(day=1, laws=5, night=30, uncompiled=1)):
        goes_on_alike(lambda: machine(lesson(name), mode, trace=True, **lesson_options(name, mode)), rng)


@pytest.mark.parametrize("mode", list(MODES))
def test_random_programs_go_on_alike(mode):
    for seed in range(cases(day=4, laws=60, night=1000, uncompiled=1)):
        rng = random.Random(f"{seed} {mode}")
        program = seeded(rng.choice(KINDS), seed)
        goes_on_alike(lambda: machine(program, mode, trace=True), rng)  # noqa: B023


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("name", ["vcpu_threads", "migrate", "noisy_neighbour", "second_vm", "perf_stat"])
def test_host_programs_go_on_alike(name, cores):
    rng = random.Random(f"{name} {cores}")
    host = assemble_file(HOST / f"{name}.s")
    for _ in range(cases(day=1, laws=4, night=20, uncompiled=1)):
        goes_on_alike(
            lambda: machine(lesson("07_contention"), "emulated", host=[host], cores=cores, trace=True), rng
        )


def test_what_is_no_snapshot_of_this_run_is_refused():
    system = machine(lesson("01_count"), "bare")
    system.step(5)
    saved = system.snapshot()
    before = system.record()
    wrong = {
        "no saved state": b"\x7fELF" + saved[4:],
        "no saved state ": saved[:10],
        "has format 9, this version reads 1": saved[:8] + (9).to_bytes(4, "little") + saved[12:],
        "checksum is wrong": saved[:-1],
        "checksum is wrong ": saved[:200] + bytes([saved[200] ^ 1]) + saved[201:],
    }
    for words, data in wrong.items():
        with pytest.raises(ConfigError, match=words.strip()):
            system.restore(data)
        assert system.record() == before
    others = {
        "a run with mode bare, this one has emulated": machine(lesson("01_count"), "emulated"),
        "a run with CPU spr, this one has skx": machine(lesson("01_count"), "bare", cpu="skx"),
        "a run with program": machine(lesson("02_selectors_and_rings"), "bare"),
        "a run with cores 1, this one has 2": machine(lesson("01_count"), "bare", cores=2),
        "a run with RAM of 2097152, this one has 4194304": machine(lesson("01_count"), "bare", ram=4),
    }
    for words, other in others.items():
        with pytest.raises(ConfigError, match=words):
            other.restore(saved)


def test_points_and_output_stay_as_they_are():
    system = machine(lesson("03_overflow_pmi"), "bare")
    stop = system.run()
    whole = system.serial
    system = machine(lesson("03_overflow_pmi"), "bare")
    system.step(10)
    saved = system.snapshot()
    assert system.run() == stop
    assert system.serial == whole
    system.restore(saved)
    assert system.serial == ""
    assert system.run() == stop
    assert system.serial == whole
