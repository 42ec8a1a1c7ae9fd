"""The PMU goes to a guest and comes back: what overflows on the way belongs to who counted."""

from __future__ import annotations

import pytest

from tests.linux.guests import positions, run, system
from vpmu_emu.linux.kvm.eventfilter import make_filter
from vpmu_emu.linux.kvm.vm import set_event_filter
from vpmu_emu.linux.trace_kinds import TR_PMU_LOAD
from vpmu_emu.machine.clock import tsc_value
from vpmu_emu.setup.hostevents import HostEvent

CPUIDS = """
    mov ebp, 12
1:  xor eax, eax
    cpuid
    dec ebp
    jnz 1b
    EXIT 0
"""


@pytest.mark.uncompiled
@pytest.mark.parametrize("period", [2460, 2552, 2621, 2966, 3150])
@pytest.mark.parametrize("mode", ["passthrough", "mediated"])
def test_an_overflow_while_the_host_stops_its_counters_is_the_hosts(mode, period):
    """Also in the very WRMSR that turns them off: each NMI is a sample, and none is unknown."""
    result = run(CPUIDS, mode, host_events=[f"cycles/period={period}/:H"])[1]
    (event,) = result["perf"]["events"]
    assert result["perf"]["nmis"] == event["samples"] > 0
    assert result["log"] == []


# --- the host's own events (design open 1) ----------------------------------------------------------------


def whole_system_and_vmm(*, exclude_guest: bool, pinned: bool) -> list[HostEvent]:
    return [
        HostEvent(
            name="task" if task else "cpu", config=0x3C if task else 0xC0, task=task, pinned=pinned,
            exclude_guest=exclude_guest,
        )
        for task in (False, True)
    ]  # fmt: skip


def counts_at_exits(**flags: bool):
    """Of the CPU's event and of the VMM's task's: count and state after each CPUID, and the result."""
    machine = system(CPUIDS, "passthrough", host_events=whole_system_and_vmm(**flags), trace=True)
    seen = []
    for n in range(2, 12):
        while machine.exits().get("CPUID", 0) < n:
            machine.step()
        events = machine.result(machine.stop(0, "step")).to_json()["perf"]["events"]
        seen.append([(event["count"], event["state"]) for event in events])
    return machine, seen, machine.result(machine.run()).to_json()


@pytest.mark.uncompiled
@pytest.mark.parametrize("pinned", [False, True])
def test_without_exclude_guest_an_event_ends_at_the_first_entry(pinned):
    """In ERROR, from perf_guest_enter() on and for good: the guest's end brings neither back."""
    machine, seen, result = counts_at_exits(exclude_guest=False, pinned=pinned)
    assert all(one == seen[0] for one in seen)
    load = machine.events()[positions(machine, TR_PMU_LOAD)[0]]
    entered = tsc_value(machine.core, int(load["t"]))
    for event, error in zip(result["perf"]["events"], result["perf"]["errors"], strict=True):
        assert (event["state"], event["cause"]) == ("ERROR", "guest owns the PMU")
        assert (error["revived"], error["retries"], error["released"]) == (None, 0, None)
        assert 0 <= error["tsc"] - entered < 2000  # the cost of perf_guest_enter() itself
    assert [event["count"] for event in result["perf"]["events"]] == [count for count, _ in seen[0]]


@pytest.mark.uncompiled
@pytest.mark.parametrize("pinned", [False, True])
def test_with_exclude_guest_it_goes_on_after_every_exit(pinned):
    _, seen, result = counts_at_exits(exclude_guest=True, pinned=pinned)
    assert result["perf"]["errors"] == []
    for k in range(2):
        counts = [one[k][0] for one in seen]
        assert counts == sorted(set(counts))  # more at every exit
        assert result["perf"]["events"][k]["state"] == "ACTIVE"


# --- a filter that another thread of the VMM installs -----------------------------------------------------
COUNTS = """
    WRMSR32 0x38f, 0
    WRMSR32 0x186, 0x4300c0
    WRMSR32 0x38d, 3
    mov ecx, 0x38f
    mov eax, 1
    mov edx, 1
    wrmsr
    mov ebp, 8
1:  nop
    nop
    nop
    xor eax, eax
    cpuid
    dec ebp
    jnz 1b
    {more}
    EXIT 0
"""
LOOP = 7


def filtered(mode: str, k: int, more: str = "", quirks=()):
    """Counters when the filter comes in at instruction k, at the next exit, at the end; steps between."""
    options = {"quirks": quirks} if quirks else {}
    machine = system(COUNTS.format(more=more), mode, **options)
    machine.step(k)

    def counters() -> tuple[int, int]:
        pmu = machine.guest_pmu()
        return pmu["pmc"][0], pmu["fixed"][0]

    before = counters()
    set_event_filter(machine.S, make_filter(1, [0xC0], 1))
    exits = sum(machine.exits().values())
    steps = 0
    while sum(machine.exits().values()) == exits:
        machine.step()
        steps += 1
    left = counters()
    assert machine.run().reason == "debug-exit"
    return before, left, counters(), steps


@pytest.mark.uncompiled
@pytest.mark.parametrize("mode", ["emulated", "passthrough", "mediated"])
@pytest.mark.parametrize("k", range(16, 16 + LOOP))
def test_a_filter_holds_from_the_next_entry_on_and_takes_no_count_away(mode, k):
    before, left, after, steps = filtered(mode, k)
    # hardware goes on up to the exit, which is the last step; what KVM does itself asks the filter, or not
    for at, then, end in zip(before, left, after, strict=True):
        assert at + steps - 1 <= then <= at + steps
        assert end == then


@pytest.mark.uncompiled
@pytest.mark.parametrize("k", [16, 19, 22])
def test_in_version_1_it_waits_for_the_guests_next_selector(k):
    quirk = ["v1-filter-update"]
    _, (pmc, fixed), end, _ = filtered("passthrough", k, quirks=quirk)
    rounds = (end[0] - pmc) / (LOOP - 1)  # CPUID is KVM's, and stops at once
    assert end[0] - pmc == end[1] - fixed > 5 * (LOOP - 1), rounds
    selector = "WRMSR32 0x186, 0x4300c0\n"
    shorter = filtered("passthrough", k, selector + "nop\n" * 10, quirk)[2]
    longer = filtered("passthrough", k, selector + "nop\n" * 30, quirk)[2]
    assert longer[0] == shorter[0] > end[0]
    assert longer[1] == shorter[1] + 20
