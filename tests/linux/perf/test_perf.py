"""Laws of perf's scheduling, on the driver alone and through whole guests."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.linux.guests import run, system, window
from vpmu_emu.linux.charge import charge
from vpmu_emu.linux.perf.event import (
    ATTR_EXCLUDE_GUEST,
    EBUSY,
    EINVAL,
    perf_event_create_kernel_counter,
    perf_event_enable,
    perf_event_period,
    perf_event_read_value,
    perf_event_release_kernel,
    perf_init,
)
from vpmu_emu.linux.perf.guest import perf_guest_enter, perf_guest_exit
from vpmu_emu.linux.perf.x86 import (
    intel_get_event_constraints,
    x86_get_event_constraints,
    x86_perf_event_set_period,
    x86_schedule_events,
)
from vpmu_emu.machine.pmu import counter_value
from vpmu_emu.machine.u64 import U64
from vpmu_emu.setup.hostevents import HostEvent
from vpmu_emu.tables.cpus import cpu
from vpmu_emu.tables.events import CONSTRAINTS, constraint
from vpmu_emu.views.perf import perf_report

pytestmark = [pytest.mark.uncompiled, pytest.mark.inner]

INSTRUCTIONS, CYCLES, REF, SLOTS, BRANCHES = 0xC0, 0x3C, 0x0300, 0x0400, 0xC4
LOADS, LIMITED, ONE_COUNTER = 0x81D0, 0x0180, 0x04A4  # on spr: counters 0 to 3, 0 to 3, 0
LOOP = """
    mov ebx, {count}
1:  dec ebx
    jnz 1b
"""


def host(*events):
    """A System whose host has these events, scheduled; no guest has run."""
    machine = system(
        "    EXIT 0\n", "emulated", host_events=[HostEvent(name="", **e) for e in events]
    )
    with np.errstate(over="ignore"):
        perf_init(machine.S, machine.E)
    return machine


def states(machine):
    return [event["state"] for event in perf_report(machine.S)]


# --- x86_schedule_events --------------------------------------------------------------------------------
def fits(choices: list[int]) -> bool:
    """Whether every event can have a counter of its own: bipartite matching, by augmenting paths."""
    holder: dict[int, int] = {}

    def place(event: int, tried: set[int]) -> bool:
        for counter in range(21):
            if choices[event] >> counter & 1 and counter not in tried:
                tried.add(counter)
                if counter not in holder or place(holder[counter], tried):
                    holder[counter] = event
                    return True
        return False

    return all(place(event, set()) for event in range(len(choices)))


CONFIGS = [
    INSTRUCTIONS,
    CYCLES,
    REF,
    SLOTS,
    BRANCHES,
    LOADS,
    LIMITED,
    ONE_COUNTER,
    0x013C,
    0x8000,
    0x8700,
]


@given(st.lists(st.sampled_from(CONFIGS), min_size=1, max_size=12),
       st.sampled_from(["spr", "icx", "skx"]))  # fmt: skip
def test_schedules_whatever_fits(configs, cpu):
    S = system("    EXIT 0\n", "emulated", cpu=cpu).S
    for i, config in enumerate(configs):
        S.perf_events[i].config = config
        S.perf_events[i].idx = -1
        S.percpu[0].event_list[i] = i
    with np.errstate(over="ignore"):
        choices = [int(x86_get_event_constraints(S, U64(c))) for c in configs]
        found = x86_schedule_events(S, S.percpu[0].event_list, len(configs))
    if not all(choices) or not fits(choices):
        assert found == EINVAL
        return
    assert found == 0
    assigned = [int(idx) for idx in S.percpu[0].fake_assign[: len(configs)]]
    assert len(set(assigned)) == len(assigned)
    assert all(choice >> idx & 1 for choice, idx in zip(choices, assigned, strict=True))


def _allowed(model, row):
    """Bits by counter that a row of the table leaves on a CPU."""
    found = row.counters & ((1 << model.gp) - 1)
    if row.fixed is not None and row.fixed < model.fixed:
        found |= 1 << 8 + row.fixed
    return found | (1 << 13 + row.metric if row.metric is not None else 0)


@pytest.mark.parametrize("name", ["spr", "icx", "skx", "emr", "generic"])
@given(data=st.data())
def test_constraints_are_those_of_the_table(name, data):
    """x86_get_event_constraints(): the first match wins; precise events have rows of their own."""
    rows = st.sampled_from(CONSTRAINTS)
    near = rows.flatmap(lambda row: st.integers(row.code - 1, row.last + 1)).filter(
        lambda code: code >= 0
    )
    config = data.draw(near | st.integers(0, 0xFFFF)) & 0xFFFF
    config |= data.draw(st.sampled_from([0, 0, 1 << 18, 1 << 23, 3 << 24]))
    model = cpu(name)
    S = system("    EXIT 0\n", "emulated", cpu=name).S
    event = S.perf_events[0]
    event.config, event.precise_ip = config, data.draw(st.integers(0, 2))
    row = constraint(config, model.events, pebs=bool(event.precise_ip))
    with np.errstate(over="ignore"):
        assert int(intel_get_event_constraints(S, event)) == _allowed(model, row)


def test_the_most_precise_counters():
    """:ppp is fixed counter 0 for instructions; else counter 0 on Golden Cove, any on Ice Lake."""
    for name, expect in (("spr", (1 << 8, 1, 0)), ("icx", (1 << 8, 0xFF, 0x0F))):
        S = system("    EXIT 0\n", "emulated", cpu=name).S
        event = S.perf_events[0]
        event.precise_ip = 3
        found = []
        for config in (INSTRUCTIONS, BRANCHES, 0x01CD if name == "spr" else LOADS):
            event.config = config
            with np.errstate(over="ignore"):
                found.append(int(intel_get_event_constraints(S, event)))
        assert tuple(found) == expect


def test_events_of_the_lower_counters():
    """Five pinned r0180 on spr: codes up to 8FH are for counters 0 to 3, and others make room for them."""
    machine = host(*({"config": c, "pinned": True} for c in [BRANCHES, *[LIMITED] * 5]))
    found = perf_report(machine.S)
    assert states(machine) == ["ACTIVE"] * 5 + ["ERROR"]
    assert {e["hw_idx"] for e in found[1:5]} == {"pmc0", "pmc1", "pmc2", "pmc3"}
    assert found[0]["hw_idx"] == "pmc4"
    assert found[5]["cause"] == "no free counter"


def test_a_guest_is_bound_by_the_constraints_of_its_host():
    """Four host events on counters 0 to 3: the guest's loads go to ERROR, its branches count."""
    two = window("pop rbx", 0x4300C4).replace(
        "WRMSR32 0x38f, 1", "WRMSR32 0x187, 0x4381d0\n    WRMSR32 0x38f, 3"
    )
    for taken in (4, 3):
        hosts = [HostEvent(name="", config=LIMITED, pinned=True)] * taken
        _, result = run(two, "emulated", host_events=hosts)
        errors = [e["name"] for e in result["perf"]["errors"]]
        assert errors == (["mem_inst_retired.all_loads:GD"] if taken == 4 else [])
        assert result["counters"]["pmc1"] == (0 if taken == 4 else 1)


def test_ref_cycles_of_a_host_do_not_starve_a_guest_on_sapphire_rapids():
    """Since 6.6 perf's ref-cycles are 013CH there, for any counter; on Ice Lake only fixed counter 2's."""
    # 100 instructions: some reference cycles, wherever the window begins
    body = window("nop\n" * 100).replace(
        "WRMSR32 0x38f, 1", "mov ecx, 0x38f\n    mov edx, 4\n    xor eax, eax\n    wrmsr"
    )
    body = "    WRMSR32 0x38d, 0x300\n" + body
    for name, errors in (("spr", 0), ("emr", 0), ("icx", 1)):
        hosts = ["ref-cycles:D"]
        _, result = run(body, "emulated", host_events=hosts, cpu=name)
        assert len(result["perf"]["errors"]) == errors, name
        assert (result["counters"]["fixed2"] > 0) == (errors == 0)


def test_fixed_counters_are_preferred():
    machine = host(
        *({"config": c, "pinned": True} for c in (INSTRUCTIONS, CYCLES, REF, SLOTS, BRANCHES))
    )
    assert [e["hw_idx"] for e in perf_report(machine.S)] == [
        "fixed0",
        "fixed1",
        "fixed2",
        "fixed3",
        "pmc0",
    ]


MULTIPLEXES = """
    mov ebx, 6
    mov r8d, 0x4300c0
    mov r9d, 0x4300c4
1:  WRMSR32 0x38f, 0
    WRMSR32 0x186, r8d
    WRMSR32 0x187, r9d
    WRMSR32 0x38f, {global_ctrl}
    xchg r8, r9
    dec ebx
    jnz 1b
    EXIT 0
"""


@pytest.mark.parametrize(("counters", "times"), [(1, 6), (2, 1)])
def test_only_the_first_event_after_none_waits_for_the_hardware(counters, times):
    """x86_reserve_hardware(): two counters that change in turn never leave perf without an event."""
    body = MULTIPLEXES.format(global_ctrl=(1 << counters) - 1)
    _, result = run(body, "emulated")
    assert result["kvm"]["created"] == 6 * counters
    assert result["work"]["x86_reserve_hardware"]["count"] == times
    _, result = run(body, "emulated", host_events=["cycles:H"])
    assert "x86_reserve_hardware" not in result["work"]


@pytest.mark.parametrize("shape", [
    {"pmu.fixed": 3}, {"pmu.fixed": 0}, {"pmu.perf_caps": 0}, {"pmu.version": 2}, {"pmu.gp": 1}, {},
])  # fmt: skip
@pytest.mark.parametrize("mode", ["emulated", "passthrough"])
def test_a_host_of_any_shape_enters_its_guests(shape, mode):
    """GLOBAL_CTRL of the host has the bit of PERF_METRICS only where the silicon takes it."""
    _, result = run(window("nop"), mode, settings=shape, host_events=["instructions:DH"])
    assert result["counters"]["pmc0"] > 0


# --- priorities -----------------------------------------------------------------------------------------
def test_twelve_pinned_events():
    machine = host(*[{"config": INSTRUCTIONS, "pinned": True}] * 12)
    found = perf_report(machine.S)
    assert states(machine) == ["ACTIVE"] * 9 + ["ERROR"] * 3
    assert {e["cause"] for e in found[9:]} == {"no free counter"}
    assert {e["hw_idx"] for e in found[:9]} == {"fixed0", *(f"pmc{i}" for i in range(8))}


def test_after_one_pinned_failure_the_rest_of_the_list_fails():
    """merge_sched_in() gives up its list at the first event that does not fit."""
    events = [REF, REF, BRANCHES]
    machine = host(*({"config": c, "pinned": True} for c in events))
    assert states(machine) == ["ACTIVE", "ERROR", "ERROR"]


def test_order_of_the_four_classes():
    """Nine places, nine flexible CPU events; pinned ones of the task come before them."""
    flexible = [{"config": INSTRUCTIONS}] * 9
    task = [{"config": INSTRUCTIONS, "pinned": True, "task": True}] * 2
    machine = host(*flexible, *task)
    assert states(machine) == ["ACTIVE"] * 7 + ["INACTIVE"] * 2 + ["ACTIVE"] * 2
    pinned = [{"config": INSTRUCTIONS, "pinned": True}] * 9
    machine = host(*task, *pinned)
    assert states(machine) == ["ERROR"] * 2 + ["ACTIVE"] * 9
    machine = host(*[{"config": INSTRUCTIONS, "task": True}] * 2, *flexible)
    assert states(machine) == ["INACTIVE"] * 2 + ["ACTIVE"] * 9


def test_groups_are_all_or_nothing():
    machine = host(
        {"config": REF, "pinned": True},
        {"config": CYCLES},
        {"config": REF, "leader": 1},
        {"config": BRANCHES, "leader": 1},
    )
    assert states(machine) == ["ACTIVE", "INACTIVE", "INACTIVE", "INACTIVE"]


def test_error_is_left_by_enabling_again():
    machine = host(*[{"config": REF, "pinned": True}] * 2)
    S, E = machine.S, machine.E
    with np.errstate(over="ignore"):
        perf_event_enable(S, E, 1)
        assert states(machine) == ["ACTIVE", "ERROR"]
        perf_event_release_kernel(S, E, 0)
        perf_event_enable(S, E, 1)
    assert states(machine) == ["ACTIVE"]


# --- counting -------------------------------------------------------------------------------------------
@given(st.lists(st.integers(0, 20), max_size=6))
def test_an_event_counts_the_charged_instructions(rows):
    machine = host(
        {"config": INSTRUCTIONS, "pinned": True}, {"config": BRANCHES, "exclude_kernel": True}
    )
    S, E = machine.S, machine.E
    with np.errstate(over="ignore"):
        before = int(perf_event_read_value(S, E, 0))
        for row in rows:
            charge(S, E, row)
        # one RDPMC reads it, and retires after that
        grown = int(perf_event_read_value(S, E, 0)) - before
        read = machine.model.cost("rdpmc").instructions
    assert grown == sum(int(S.config.costs[row][1]) for row in rows) + read
    assert perf_report(S)[1]["count"] == 0


@pytest.mark.parametrize("left", [1, 2, 3, 1000])
def test_period_is_at_least_two(left):
    machine = host({"config": BRANCHES, "pinned": True, "period": 5000})
    event = machine.S.perf_events[0]
    event.period_left = left
    with np.errstate(over="ignore"):
        x86_perf_event_set_period(machine.S, machine.E, 0)
        value = int(counter_value(machine.core, int(event.idx)))
    assert (1 << 48) - value == max(left, 2)


def test_period_of_a_counting_event_is_refused():
    machine = host({"config": BRANCHES, "pinned": True})
    assert perf_event_period(machine.S, machine.E, 0, U64(1000)) == EINVAL
    assert perf_event_period(machine.S, machine.E, 0, U64(0)) == EINVAL


def test_sampling_interrupts_the_host():
    """A host event that samples its own kernel: one NMI a period."""
    events = [
        HostEvent(name="", config=INSTRUCTIONS, period=20_000, pinned=True, exclude_guest=True)
    ]
    body = window("xor eax, eax\n cpuid\n" * 40)
    _, result = run(body, "emulated", host_events=events)
    event = result["perf"]["events"][0]
    assert event["samples"] == result["perf"]["nmis"] == event["count"] // 20_000 > 0
    assert result["counters"]["pmc0"] == run(body, "bare")[1]["counters"]["pmc0"]


def test_throttling():
    events = [HostEvent(name="", config=INSTRUCTIONS, period=3000, pinned=True, exclude_guest=True)]
    machine = system(window("xor eax, eax\n cpuid\n" * 40), "emulated", host_events=events)
    machine.S.config.max_samples_per_tick = 5
    machine.S.config.tick_interval = 60_000 * 16
    result = machine.result(machine.run()).to_json()
    event = result["perf"]["events"][0]
    assert result["perf"]["throttles"] == result["perf"]["timer_irqs"] > 1
    # at most five and the one that throttles, in every tick begun
    assert 5 < event["samples"] <= 6 * (result["cycles"] // 60_000 + 1)


def test_multiplexing():
    """Twelve flexible events on nine places share them by rotation; the guest is not disturbed."""
    body = window(LOOP.format(count=3000))
    machine = system(body, "emulated", host_events=["instructions*12"])
    machine.S.config.mux_interval = 2000 * 16
    result = machine.result(machine.run()).to_json()
    events = [e for e in result["perf"]["events"] if e["owner"] == "host"]
    assert result["perf"]["rotations"] >= 3
    enabled = {e["enabled"] for e in events}
    assert len(enabled) == 1
    running = sum(e["running"] for e in events)
    # While KVM's pinned event is on eight places are left, else nine.
    assert all(0 < e["running"] < e["enabled"] for e in events)
    assert 0.6 * 8 * enabled.pop() < running <= 9 * max(e["enabled"] for e in events)
    assert result["counters"] == run(body, "emulated")[1]["counters"]
    assert result["counters"]["pmc0"] == run(body, "bare")[1]["counters"]["pmc0"]
    # Some come while the VMM runs.
    assert 0 < result["exits"]["EXTERNAL_INTERRUPT"] <= result["perf"]["timer_irqs"]


def test_host_and_guest_counts_do_not_mix():
    """A host event that excludes the guest does not see how long the guest runs, nor the reverse."""
    for mode in ("emulated", "passthrough"):
        counts = []
        for extra in (0, 7, 500):
            body = window(" nop\n" * extra)
            result = run(body, mode, host_events=["instructions:HD"])[1]
            counts.append(
                (result["perf"]["events"][0]["count"], result["counters"]["pmc0"] - extra)
            )
        assert all(a == b for a, b in pairwise(counts)), (mode, counts)


def first_event(result) -> int:
    """The count of the first event of the report."""
    return result["perf"]["events"][0]["count"]


def test_guest_only_event_counts_the_guest_alone():
    """`:G` in mode emulated counts what retires in hardware in the guest."""
    counts = [
        first_event(run(window(" nop\n" * n), "emulated", host_events=["instructions:GD"])[1])
        for n in (0, 100)
    ]
    assert counts[1] - counts[0] == 100
    machine, result = run(window(" nop\n" * 5), "emulated", host_events=["instructions:GD"])
    emulated = result["kvm"]["emulated_instructions"]
    assert first_event(result) == machine.instructions - emulated


# --- the guest owns the PMU -----------------------------------------------------------------------------
def test_creation_while_a_guest_owns_the_pmu():
    machine = host({"config": CYCLES, "exclude_guest": True})
    S, E = machine.S, machine.E
    with np.errstate(over="ignore"):
        perf_guest_enter(S, E)
        assert states(machine) == ["INACTIVE"]
        assert perf_event_create_kernel_counter(S, E, 0, 0, U64(0xC0), U64(0), 0, -1, -1) == EBUSY
        made = perf_event_create_kernel_counter(
            S, E, 0, ATTR_EXCLUDE_GUEST, U64(0xC0), U64(0), 0, -1, -1
        )
        assert made == 1
        assert states(machine) == ["INACTIVE"] * 2
        perf_guest_exit(S, E)
    assert states(machine) == ["ACTIVE"] * 2


def test_an_event_that_no_counter_can_count_is_refused():
    machine = system("    EXIT 0\n", "emulated", settings={"pmu.fixed": 3})
    created = perf_event_create_kernel_counter(
        machine.S, machine.E, 0, 0, U64(SLOTS), U64(0), 0, -1, -1
    )
    assert created == EINVAL
