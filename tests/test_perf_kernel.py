"""The guest kernel that is perf record: what it does to the PMU is what Linux does, in that order."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest

from vpmu_emu import run
from vpmu_emu.data import guests_dir
from vpmu_emu.lab.measure import GUEST_WORK
from vpmu_emu.load import load
from vpmu_emu.machine import msr_index, ring
from vpmu_emu.system import System
from vpmu_emu.tables.cpus import cpu

LVTPC, EOI, DEADLINE = 0x834, 0x80B, 0x6E0
GLOBAL_STATUS, GLOBAL_CTRL, GLOBAL_OVF_CTRL = 0x38E, 0x38F, 0x390
EVENTSEL0, PMC0, FIXED0, FIXED_CTR_CTRL = 0x186, 0x4C1, 0x309, 0x38D
R, W, P = ring.TR_GUEST_RDMSR, ring.TR_GUEST_WRMSR, ring.TR_GUEST_RDPMC


def system(workload="sort", vpmu="bare", **defsym):
    options = defsym.pop("options", {})
    program = load(
        guests_dir() / "workloads" / f"{workload}.s", {"WARM_UNITS": 0, "UNITS": 10**9, **defsym}
    )
    return System(program, vpmu=vpmu, **options)


def words(machine, name, count=1):
    at = machine.program.symbols[name]
    return np.frombuffer(machine.read(at, 8 * count), dtype=np.uint64).astype(np.int64).tolist()


def word(machine, name):
    return words(machine, name)[0]


def accesses(machine):
    """[(kind, index), …] of the guest, with ("nmi", 0) and ("irq", 0) where one came in."""
    found = []
    for event in machine.events():
        kind = int(event["kind"])
        if kind in (R, W, P, ring.TR_GUEST_WRMSR_BLIND):
            found.append((W if kind == ring.TR_GUEST_WRMSR_BLIND else kind, int(event["a"])))
        elif kind == ring.TR_NMI:
            found.append(("nmi", 0))
        elif kind == ring.TR_IRQ:
            found.append(("irq", 0))
    return found


@cache
def traced(events, kernel=515, ms=12):
    """Accesses of a bare run, once its frequencies have settled."""
    machine = system(EVENTS=events, KERNEL=kernel, HZ=1000, options={"trace": "-"})
    machine.run(until=ms * machine.model.core_khz)
    assert word(machine, "perf_unknown_nmis") == 0
    return accesses(machine)


def behind(found, mark):
    """What follows each `mark` until the next interrupt of any kind."""
    pieces, here = [], None
    for access in found:
        if access[0] in ("nmi", "irq"):
            if here is not None:
                pieces.append(here)
            here = [] if access[0] == mark else None
        elif here is not None:
            here.append(access)
    return pieces


def test_a_pmi_does_what_intel_pmu_handle_irq_does():
    one = [(W, GLOBAL_CTRL), (R, GLOBAL_STATUS), (W, GLOBAL_OVF_CTRL), (P, 0x40000000), (W, FIXED0),
           (R, GLOBAL_STATUS), (W, GLOBAL_CTRL), (W, LVTPC)]  # fmt: skip
    pieces = [piece for piece in behind(traced(1), "nmi") if piece]
    assert len(pieces) > 5
    assert pieces[-1] == one


@pytest.mark.parametrize("kernel", [515, 607, 700])
def test_a_tick_stops_and_starts_each_event(kernel):
    ticks = [piece for piece in behind(traced(3, kernel), "irq") if len(piece) > 4]
    fixed = [(P, 0x40000000), (W, FIXED0)]
    if kernel < 601:  # the control of the fixed counters is read and written back each time
        fixed = [
            (R, FIXED_CTR_CTRL),
            (W, FIXED_CTR_CTRL),
            *fixed,
            (R, FIXED_CTR_CTRL),
            (W, FIXED_CTR_CTRL),
        ]

    def gp(n):
        return [(W, EVENTSEL0 + n), (P, n), (W, PMC0 + n), (W, EVENTSEL0 + n)]

    off, on = [(W, GLOBAL_CTRL)], [(W, GLOBAL_CTRL)]
    if 602 <= kernel < 610:
        body = off + fixed + on + off + gp(0) + on + off + gp(1) + on
    else:
        body = off + fixed + gp(0) + gp(1) + on
    assert ticks[-1] == [(W, EOI), *body, (W, DEADLINE)]


def test_a_rotation_takes_all_events_out_and_in():
    pieces = [piece for piece in behind(traced(10, 700, 20), "irq") if (W, LVTPC) in piece]
    assert len(pieces) > 5
    rotation = pieces[-1][pieces[-1].index((W, LVTPC)) - 1 :]
    assert rotation[1] == (W, LVTPC)  # perf_events_lapic_init()
    before = pieces[-1][: pieces[-1].index((W, LVTPC))]
    # A selector is written for each tick's stop and start, and for each rotation's.
    for n in range(8):
        assert before.count((W, EVENTSEL0 + n)) >= 2


@pytest.mark.parametrize(
    "vpmu", ["bare", "passthrough", pytest.param("mediated", marks=pytest.mark.laws)]
)
def test_the_frequency_that_was_asked_for_is_kept(vpmu):
    machine = system(vpmu=vpmu, EVENTS=6, HZ=250)
    khz = machine.model.core_khz
    machine.run(until=30 * khz)
    before = word(machine, "perf_samples")
    machine.run(until=60 * khz)
    assert word(machine, "perf_samples") - before == pytest.approx(180, rel=0.05)
    assert word(machine, "perf_unknown_nmis") == word(machine, "perf_throttles") == 0


def test_ten_events_share_nine_counters_evenly():
    machine = system(EVENTS=10, HZ=1000)
    machine.run(until=60 * machine.model.core_khz)
    events = np.frombuffer(
        machine.read(machine.program.symbols["perf_ring"], 56 * 1024), dtype=np.uint64
    ).reshape(-1, 7)
    taken = [int(np.sum((events[:, 0] != 0) & (events[:, 4] == n))) for n in range(10)]
    assert sum(taken) > 300
    assert max(taken) < 1.6 * min(taken)
    assert word(machine, "perf_rotations") == pytest.approx(60, abs=3)


@pytest.mark.parametrize("row", ["perf_event_overflow", "nmi_entry", "timer_interrupt"])
def test_work_takes_what_its_row_says(row):
    """The same run with a row ten thousand cycles dearer is so much longer for each piece of that work."""

    def done(cycles):
        machine = system(EVENTS=2, HZ=1000, UNITS=4000, FREQ=2000, **{f"COST_{row}": cycles})
        assert machine.run().info == 0
        count = words(machine, "work_count", len(GUEST_WORK))[GUEST_WORK.index(row)]
        return word(machine, "elapsed_tsc"), count

    (short, few), (long, many) = done(1000), done(11000)
    assert many >= few > 5
    model = cpu("spr")
    core = (long - short) * model.core_khz / model.tsc_khz
    # A longer run has more ticks and samples, which take time of their own.
    expected = many * 11000 - few * 1000
    assert expected * 0.93 <= core <= expected * 1.3


def test_an_expensive_handler_lowers_the_rate_that_perf_allows():
    dear = system(EVENTS=2, HZ=1000, COST_perf_event_overflow=60_000)
    dear.run(until=20 * dear.model.core_khz)
    assert word(dear, "perf_lowered") > 0
    assert word(dear, "max_samples_per_tick") < 50
    cheap = system(EVENTS=2, HZ=1000, COST_perf_event_overflow=100, COST_perf_event_nmi_handler=100)
    cheap.run(until=20 * cheap.model.core_khz)
    assert word(cheap, "perf_lowered") == 0
    assert word(cheap, "max_samples_per_tick") == 100


def test_too_many_samples_in_a_tick_are_throttled():
    cheap = {f"COST_{row}": 50 for row in ("perf_event_overflow", "perf_event_nmi_handler", "nmi_entry")}
    machine = system(EVENTS=1, HZ=1000, FREQ=400_000, **cheap)
    khz = machine.model.core_khz
    machine.run(until=20 * khz)
    samples, throttles = word(machine, "perf_samples"), word(machine, "perf_throttles")
    assert throttles > 0
    machine.run(until=30 * khz)
    # Throttled in each tick, after so many samples as a tick may have, and unthrottled by the next.
    assert 8 <= word(machine, "perf_throttles") - throttles <= 11
    assert word(machine, "perf_samples") - samples == pytest.approx(10 * 101, rel=0.15)


@pytest.mark.parametrize(("cpu_name", "extra"), [("generic", {}), ("skx", {"TSC_KHZ": 2_000_000})])
def test_it_boots_on_processors_that_do_not_tell_their_clock(cpu_name, extra):
    result = run(system(EVENTS=3, UNITS=20, **extra).program, cpu=cpu_name)
    assert result.to_json()["exit_code"] == 0, result.serial


def test_without_a_pmu_it_says_so():
    result = run(system(EVENTS=2, UNITS=5).program, vpmu="none")
    assert result.to_json()["exit_code"] == 1
    assert "CPUID leaf 0AH tells of none" in result.serial


def test_the_order_of_work_is_that_of_the_c_file():
    source = (guests_dir() / "c" / "perf_kernel.c").read_text(encoding="utf-8")
    assert tuple(re.findall(r"\bWORK_(\w+),", source)) == GUEST_WORK
    include = (guests_dir() / "include" / "perf_kernel.inc").read_text(encoding="utf-8")
    assert tuple(re.findall(r"\.quad COST_(\w+)", include)) == GUEST_WORK
    assert {cost.name for cost in cpu("spr").costs if cost.guest} == set(GUEST_WORK)
    assert msr_index.MSR_CORE_PERF_GLOBAL_CTRL == GLOBAL_CTRL
