"""What the whole machine must show: contention, exact counts on both sides, clean hardware, the filter."""

from __future__ import annotations

import json

import jsonschema
import pytest

from tests.conftest import ROOT
from tests.linux.guests import (
    BRANCHES,
    FIXED_CTR_CTRL,
    GLOBAL_CTRL,
    GLOBAL_STATUS,
    INSTRUCTIONS,
    OVF_CTRL,
    run,
    window,
)
from tests.tools.whole import LESSONS, MODES, lesson, lesson_options, machine, seeded
from vpmu_emu.linux.trace_kinds import TR_PMU_LOAD, TR_PMU_PUT
from vpmu_emu.machine.ring import TR_HOST_RDMSR, TR_HOST_RDPMC, TR_HOST_WRMSR
from vpmu_emu.tables.cpus import COST_NAMES
from vpmu_emu.traces.text import lines

GUESTS = ("emulated", "passthrough")
CPUID = "    xor eax, eax\n    cpuid\n"
LOOP = """
    mov r8d, 400
again:
    nop
    dec r8d
    jnz again
"""


# --- contention -----------------------------------------------------------------------------------------
@pytest.mark.uncompiled
@pytest.mark.parametrize("selector", [INSTRUCTIONS, BRANCHES])
def test_twelve_pinned_host_events_freeze_the_guest(selector):
    """They hold every counter: the guest's own event goes to ERROR and nothing tells the guest."""
    specs = ["instructions:D", "branches:D*11"]
    _, result = run(window(LOOP, selector), "emulated", host_events=specs)
    assert result["counters"]["pmc0"] == (1 if selector == INSTRUCTIONS else 0)  # the opener, in software
    events = result["perf"]["events"]
    kvm = [event for event in events if event["owner"] == "kvm"]
    assert [(event["state"], event["pmc"]) for event in kvm] == [("ERROR", "pmc0")]
    assert kvm[0]["cause"]
    assert kvm[0]["count"] == kvm[0]["running"] == 0
    held = [event["hw_idx"] for event in events if event["state"] == "ACTIVE"]
    assert sorted(held) == ["fixed0", *(f"pmc{i}" for i in range(8))]
    assert sum(event["state"] == "ERROR" for event in events if event["owner"] == "host") == 3


@pytest.mark.uncompiled
@pytest.mark.parametrize("selector", [INSTRUCTIONS, BRANCHES])
def test_twelve_flexible_host_events_are_multiplexed_and_the_guest_is_exact(selector):
    body = window(LOOP, selector)
    _, result = run(body, "emulated", host_events=["branches:*12"])
    assert result["counters"]["pmc0"] == run(body, "bare")[1]["counters"]["pmc0"]
    host = [event for event in result["perf"]["events"] if event["owner"] == "host"]
    assert len(host) == 12
    assert all(event["state"] in ("ACTIVE", "INACTIVE") for event in host)
    assert any(event["running"] < event["enabled"] for event in host)
    assert all(event["enabled"] > 0 for event in host)


@pytest.mark.uncompiled
@pytest.mark.parametrize("mode", GUESTS)
@pytest.mark.parametrize("exits", [0, 2, 7])
def test_host_and_guest_count_side_by_side(mode, exits):
    """A host event that excludes the guest sees the host's instructions, PMC0 the guest's: both exact."""
    body = window(LOOP + CPUID * exits)
    system, result = run(body, mode, host_events=["instructions:H"])
    assert result["counters"]["pmc0"] == run(body, "bare")[1]["counters"]["pmc0"]
    (event,) = (event for event in result["perf"]["events"] if event["owner"] == "host")
    assert event["state"] == "ACTIVE"
    charged = int(system.core.stats.host_insns)
    assert 0 < event["count"] < charged
    # every further exit adds the same, and what the guest retires adds nothing
    bodies = [window(LOOP + CPUID * (exits + n)) for n in (1, 2)]
    more = [run(text, mode, host_events=["instructions:H"])[1] for text in bodies]
    first, second, third = (r["perf"]["events"][0]["count"] for r in (result, *more))
    assert third - second == second - first > 0
    longer = run(window(LOOP + "    nop\n" * 50 + CPUID * exits), mode, host_events=["instructions:H"])[1]
    assert longer["perf"]["events"][0]["count"] == event["count"]


@pytest.mark.uncompiled
def test_the_host_event_counts_every_instruction_that_the_host_retires():
    """With an idle guest PMU nothing pauses the host's counter: each exit adds all that it charges."""
    seen = []
    for exits in range(4):
        system, result = run(CPUID * exits + "    EXIT 0\n", "emulated", host_events=["instructions:H"])
        seen.append((int(system.core.stats.host_insns), result["perf"]["events"][0]["count"]))
    before = {charged - counted for charged, counted in seen}
    assert len(before) == 1  # what was charged before perf_event_open returned
    assert seen[3][1] - seen[0][1] > 3 * 100


def cost_rows(system, column: int) -> dict[str, int]:
    """Column 0 cycles, 1 instructions, 2 branches of every piece of host work."""
    return {name: int(system.S.config.costs[k][column]) for k, name in enumerate(COST_NAMES)}


# --- the context switch ---------------------------------------------------------------------------------
def assert_clean_after_each_put(system) -> int:
    """Replay the host's accesses: at each put whatever was not zero is written to zero. How many puts."""
    shadow: dict[int, int] = {}
    status = -1
    read: set[int] = set()
    puts = 0
    events = system.events()
    assert int(system.E.ring_head) <= len(system.E.ring), "the ring must hold the whole run"
    for event in events:
        kind, index, value = int(event["kind"]), int(event["a"]), int(event["b"])
        if kind == TR_HOST_WRMSR:
            shadow[index] = value
            if index == OVF_CTRL:
                status &= ~value
        elif kind == TR_HOST_RDPMC:
            counter = 0x309 + (index & 0xFFFF) if index >> 30 else 0x4C1 + index
            shadow[counter] = value
            read.add(counter)
        elif kind == TR_HOST_RDMSR and index == GLOBAL_STATUS:
            status = value
        elif kind == TR_PMU_LOAD:
            read.clear()
        elif kind == TR_PMU_PUT:
            puts += 1
            assert status == 0, f"put {puts}: GLOBAL_STATUS {status:#x}"
            assert read >= {0x4C1 + i for i in range(8)} | {0x309 + i for i in range(3)}
            fixed = (0x309, 0x30A, 0x30B, FIXED_CTR_CTRL)
            for register in (*range(0x186, 0x18E), *range(0x4C1, 0x4C9), *fixed):
                assert shadow.get(register, 0) == 0, f"put {puts}: {register:#x} is {shadow[register]:#x}"
            read.clear()
    return puts


@pytest.mark.uncompiled
@pytest.mark.parametrize("kind", ["agreement", "anything"])
def test_the_hardware_is_all_zero_after_every_put(kind):
    for seed in range(3):
        system = machine(seeded(kind, seed), "passthrough", trace=True, max_insns=600)
        system.run()
        puts = assert_clean_after_each_put(system)
        assert puts == system.S.vcpus[0].pmu.puts > 2


@pytest.mark.uncompiled
def test_the_replay_is_not_blind():
    system, _ = run(window(CPUID), "passthrough", trace=True, inject=["keep-selectors"])
    with pytest.raises(AssertionError, match="put"):
        assert_clean_after_each_put(system)


@pytest.mark.uncompiled
@pytest.mark.parametrize("exits", [1, 4])
@pytest.mark.parametrize(("selector", "column"), [(INSTRUCTIONS, 1), (BRANCHES, 2)])
def test_without_the_global_ctrl_switch_the_guest_counts_the_host(selector, column, exits):
    """By exactly what the host retires between VM exit and the read, and between load and VM entry."""
    body = window(CPUID * exits + "    nop\n", selector)
    exact = run(body, "passthrough")[1]["counters"]["pmc0"]
    assert exact == run(body, "bare")[1]["counters"]["pmc0"]
    system, leaky = run(body, "passthrough", without=[15])
    costs = cost_rows(system, column)
    leave = costs["vm_exit"] + 2 * costs["rdmsr"]
    enter = costs["vcpu_run"] + costs["vm_entry"]
    assert leaky["counters"]["pmc0"] - exact == exits * (leave + enter)
    assert exits * (leave + enter) > 0


@pytest.mark.uncompiled
def test_the_trace_shows_put_and_load_in_order():
    """Line by line: GLOBAL_CTRL off first, selectors with their counters, LVTPC handed back last."""
    system, _ = run(window(CPUID), "passthrough", trace=True)
    events = system.events()
    kinds = [int(event["kind"]) for event in events]
    text = list(lines(events))
    assert len(text) >= len(events)
    put = [k for k, kind in enumerate(kinds) if kind == TR_PMU_PUT][-2]
    load = next(k for k in range(put, len(kinds)) if kinds[k] == TR_PMU_LOAD)
    writes = [int(e["a"]) for e in events[load : load + 40] if int(e["kind"]) == TR_HOST_WRMSR]
    pairs = [register for i in range(8) for register in (0x4C1 + i, 0x186 + i)]
    assert writes[:3] == [0x834, GLOBAL_CTRL, 0x391]
    assert writes[3 : 3 + 16] == pairs
    assert writes[19:23] == [FIXED_CTR_CTRL, 0x309, 0x30A, 0x30B]
    last = [int(e["a"]) for e in events[:put] if int(e["kind"]) == TR_HOST_WRMSR][-1]
    assert last == 0x834


# --- the filter -----------------------------------------------------------------------------------------
@pytest.mark.uncompiled
@pytest.mark.parametrize("mode", GUESTS)
def test_a_filter_that_denies_instructions(mode, tmp_path):
    path = tmp_path / "filter.toml"
    path.write_text('action = "deny"\nevents = [0xC0]\n')
    body = window(LOOP + CPUID * 3).replace("EXIT 0", "RDMSR32 0x186\n    mov esi, eax\n    EXIT 0")
    system, result = run(body, mode, filter=path, trace=True)
    assert result["counters"]["pmc0"] == 0
    assert result["registers"]["rsi"] == INSTRUCTIONS
    assert result["kvm"]["eventsel_hw"][0] in (0, INSTRUCTIONS & ~(1 << 22))
    programmed = [
        int(event["b"])
        for event in system.events()
        if int(event["kind"]) == TR_HOST_WRMSR and int(event["a"]) == 0x186
    ]
    assert not any(value & 1 << 22 for value in programmed)
    # the same guest without a filter counts them, so the guest is not blind
    assert run(body, mode)[1]["counters"]["pmc0"] > 3


# --- results --------------------------------------------------------------------------------------------
@pytest.mark.uncompiled
@pytest.mark.parametrize("mode", [*MODES, "none"])
@pytest.mark.parametrize("name", LESSONS)
def test_results_follow_the_documented_schema(name, mode):
    most = 100 if mode == "none" else 500
    system = machine(lesson(name), mode, max_insns=most, **lesson_options(name, mode))
    result = system.result(system.run()).to_json()
    schema = json.loads((ROOT / "docs" / "schema.json").read_text())
    assert ("perf" in result) == (mode != "bare")
    jsonschema.validate(json.loads(json.dumps(result)), schema)
    gp, fixed = (8, 4) if mode == "bare" else (0, 0) if mode == "none" else (8, 3)
    wanted = {*(f"pmc{i}" for i in range(gp)), *(f"fixed{i}" for i in range(fixed))}
    assert set(result["counters"]) == wanted
    assert all(result["exits"].values())


@pytest.mark.slow
def test_sampling_takes_fewer_than_half_of_the_exits_when_passed_through():
    results = {}
    for mode in GUESTS:
        system = machine(lesson("06_sampling"), mode, max_insns=1_000_000)
        stop = system.run()
        assert (stop.reason, stop.info) == ("debug-exit", 0)
        results[mode] = system.result(stop).to_json()
    assert results["emulated"]["pmis"] == results["passthrough"]["pmis"] > 20
    exits = {mode: sum(result["exits"].values()) for mode, result in results.items()}
    assert 2 * exits["passthrough"] < exits["emulated"]
