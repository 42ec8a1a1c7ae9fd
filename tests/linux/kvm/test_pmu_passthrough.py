"""The PMU context switch of the first version of the series, access by access."""

from __future__ import annotations

import pytest

from tests.linux.guests import (
    FIXED_CTR_CTRL,
    GLOBAL_CTRL,
    GLOBAL_STATUS,
    INSTRUCTIONS,
    OVF_CTRL,
    host_accesses,
    positions,
    run,
    window,
)
from vpmu_emu.linux.trace_kinds import TR_PMU_LOAD, TR_PMU_PUT

pytestmark = [pytest.mark.uncompiled, pytest.mark.inner]

LVTPC = 0x834
STATUS_SET = 0x391


def load_sequence(machine, counters, selectors, fixed, fixed_ctrl, status, hw_status=0):
    """What restore must do for a guest with these registers (8 GP, 3 of 4 fixed counters)."""
    expected = [("wrmsr", LVTPC, 0x100F5), ("wrmsr", GLOBAL_CTRL, 0), ("rdmsr", GLOBAL_STATUS, hw_status)]
    expected += [("wrmsr", OVF_CTRL, hw_status)] if hw_status else []
    expected += [("wrmsr", STATUS_SET, status)]
    for i in range(8):
        expected += [("wrmsr", 0x4C1 + i, counters[i]), ("wrmsr", 0x186 + i, selectors[i])]
    expected += [("wrmsr", FIXED_CTR_CTRL, fixed_ctrl)]
    expected += [("wrmsr", 0x309 + i, fixed[i]) for i in range(3)]
    return [*expected, ("wrmsr", 0x30C, 0), ("wrmsr", 0x329, 0)]


def put_sequence(counters, selectors, fixed, fixed_ctrl, status):
    """What save must do with these values in the hardware."""
    expected = [("rdmsr", GLOBAL_STATUS, status)] + ([("wrmsr", OVF_CTRL, status)] if status else [])
    for i in range(8):
        expected += [("rdpmc", i, counters[i])]
        expected += [("wrmsr", 0x186 + i, 0)] if selectors[i] else []
        expected += [("wrmsr", 0x4C1 + i, 0)] if counters[i] else []
    expected += [("wrmsr", FIXED_CTR_CTRL, 0)] if fixed_ctrl else []
    for i in range(3):
        expected += [("rdpmc", 1 << 30 | i, fixed[i])]
        expected += [("wrmsr", 0x309 + i, 0)] if fixed[i] else []
    return [*expected, ("wrmsr", LVTPC, 0x400)]


GUEST = """
    WRMSR32 0x38f, 0
    WRMSR32 0x186, 0x4300c0
    WRMSR32 0x38d, 0x0b
    WRMSR32 0x309, 5
    mov ecx, 0x4c2
    mov eax, -1
    mov edx, 0xffff
    wrmsr
    WRMSR32 0x187, 0x4300c0
    mov ecx, 0x38f
    mov eax, 3
    mov edx, 1
    wrmsr
opened:
    nop
    nop
closed:
    xor eax, eax
    cpuid
    EXIT 0
"""


def test_one_put_and_one_load():
    machine, result = run(GUEST, "passthrough", trace=True)
    loads, puts = positions(machine, TR_PMU_LOAD), positions(machine, TR_PMU_PUT)
    assert len(loads) == len(puts) == result["exits"]["MSR_WRITE"] + 2
    # opened by a passed-through write: nop nop xor have retired, PMC1 has wrapped on the first nop
    counters = [3, 2] + [0] * 6
    selectors = [INSTRUCTIONS, INSTRUCTIONS] + [0] * 6
    fixed = [8, 0, 0]
    cpuid_put, cpuid_load = puts[-2], loads[-1]
    exits = [k for k in range(cpuid_put) if k > loads[-2]]
    put = host_accesses(machine, loads[-2], cpuid_put)
    assert put[len(load_sequence(machine, counters, selectors, fixed, 0xB, 0)) :] == put_sequence(
        counters, selectors, fixed, 0xB, 1 << 1
    )
    assert exits
    # CPUID was emulated: one more on all three, in software
    counters, fixed = [4, 3] + [0] * 6, [9, 0, 0]
    load = host_accesses(machine, cpuid_load, puts[-1])
    expected = load_sequence(machine, counters, selectors, fixed, 0xB, 1 << 1)
    assert load[: len(expected)] == expected


def test_idle_guest_costs_22_writes_to_load():
    machine, _ = run("    xor eax, eax\n    cpuid\n    EXIT 0\n", "passthrough", trace=True)
    loads, puts = positions(machine, TR_PMU_LOAD), positions(machine, TR_PMU_PUT)
    load = host_accesses(machine, loads[0], puts[0])
    writes = [index for what, index, _ in load if what == "wrmsr"]
    # GLOBAL_CTRL, STATUS_SET, 16, FIXED_CTR_CTRL, 3; the fourth fixed counter; PERF_METRICS; the LVTPC;
    # put's LVTPC
    assert len(writes) == 22 + 1 + 1 + 1 + 1


def test_hardware_is_clean_after_put():
    for cpu in ("spr", "icx", "skx"):
        _machine, result = run(GUEST, "passthrough", cpu=cpu)
        hw = result["hw"]
        assert not any(hw["eventsel"])
        assert not any(hw["pmc"])
        assert not any(hw["fixed"])
        assert hw["fixed_ctr_ctrl"] == 0
        assert hw["global_ctrl"] == 0
        assert hw["global_status"] == 0
        assert result["kvm"]["loads"] == result["kvm"]["puts"]
        assert result["kvm"]["dirty_puts"] == 0


def test_hardware_is_clean_after_put_although_the_host_counts():
    machine, result = run(GUEST, "passthrough", host_events=["instructions:HD", "cycles/period=9999/:H"])
    assert result["kvm"]["dirty_puts"] == 0
    assert not any(result["hw"]["pmc"] + result["hw"]["fixed"] + result["hw"]["eventsel"])
    assert machine.hardware_pmu()["fixed_ctr_ctrl"] == 0xBB  # the host's own, back since


def test_injected_bug_leaves_selectors_behind():
    _, result = run(GUEST, "passthrough", inject=["keep-selectors"])
    assert result["hw"]["eventsel"][:2] == [INSTRUCTIONS] * 2
    assert result["kvm"]["dirty_puts"] == result["kvm"]["puts"] - 1


def test_cpus_without_the_save_control_use_the_msr_list():
    body = window("xor eax, eax\n cpuid\n nop\n nop")
    wanted = run(body, "passthrough", cpu="spr")[1]["counters"]["pmc0"]
    for cpu in ("icx", "skx"):
        machine, result = run(body, "passthrough", cpu=cpu)
        assert machine.S.config.save_global_ctrl == 0
        assert result["counters"]["pmc0"] == wanted


@pytest.mark.parametrize("exits", [0, 1, 3])
def test_global_ctrl_switch(exits):
    """With the switch no host instruction counts for the guest; without it exactly those charged do."""
    body = window("xor eax, eax\n cpuid\n" * exits + " nop\n nop")
    clean = run(body, "passthrough")[1]
    assert clean["kvm"]["loaded_insns"] == 0
    machine, leaky = run(body, "passthrough", without=[15])
    # Only exits inside the window can leak, and the closing write ends it before the last put.
    leaked = leaky["counters"]["pmc0"] - clean["counters"]["pmc0"]
    assert (leaked > 0) == (exits > 0)
    assert leaked == host_insns_while_counting(machine)


def host_insns_while_counting(machine) -> int:
    """Host instructions of the stretches in which PMC0 was enabled, from the costs and the trace."""
    # Each exit inside the window: vm_exit, RDMSR GLOBAL_CTRL and GLOBAL_STATUS before RDPMC(0);
    # each entry: vcpu_run and vm_entry after WRMSR GLOBAL_CTRL.
    from vpmu_emu.tables.cpus import COST_NAMES

    rows = machine.S.config.costs
    insns = {name: int(rows[k][1]) for k, name in enumerate(COST_NAMES)}
    exits = machine.exits().get("CPUID", 0)
    leave = insns["vm_exit"] + 2 * insns["rdmsr"]
    enter = insns["vcpu_run"] + insns["vm_entry"]
    return exits * (leave + enter)


def test_unexposed_counters_read_zero():
    body = """
    mov ecx, 0x40000003
    rdpmc
    mov esi, eax
    EXIT 0
    """
    _, result = run(body, "passthrough", host_events=["slots:D"])
    assert result["registers"]["rsi"] == 0
    _, result = run(body, "passthrough", host_events=["slots:DH"], without=[24])
    assert result["registers"]["rsi"] != 0


def test_all_passthrough_needs_no_selector_exits():
    body = window("nop\n" * 3)
    _machine, result = run(body, "passthrough", all_passthrough=True)
    assert "MSR_WRITE" not in result["exits"]
    assert result["counters"]["pmc0"] == run(body, "bare")[1]["counters"]["pmc0"]
    assert result["hw"]["eventsel"][0] == 0


FASTPATH = """
    WRMSR32 0x1b, 0xfee00d00
    WRMSR32 0x80f, 0x1ff
    WRMSR32 0x832, 0x40020
    WRMSR32 0x6e0, 0x7fffffff
    WRMSR32 0x6e0, 0x6fffffff
    EXIT 0
"""


def test_tsc_deadline_does_not_switch_the_pmu():
    _, result = run(FASTPATH, "passthrough")
    assert result["exits"]["MSR_WRITE"] == 5
    assert result["kvm"]["fastpaths"] == 2
    assert result["kvm"]["loads"] == 5 - 2 + 1


def test_host_event_without_exclude_guest_goes_to_error():
    _, result = run(window("nop"), "passthrough", host_events=["instructions:D", "cycles:H"])
    first, second = result["perf"]["events"]
    assert (first["state"], first["cause"]) == ("ERROR", "guest owns the PMU")
    assert second["state"] == "ACTIVE"
    assert second["count"] > 0


@pytest.mark.parametrize(("quirk", "states"), [
    ((), ["ACTIVE", "ERROR"]),
    (("v1-sibling-error",), ["ERROR", "INACTIVE"]),
])  # fmt: skip
def test_sibling_error(quirk, states):
    from vpmu_emu.setup.hostevents import HostEvent

    group = [
        HostEvent(name="a", config=0xC0, exclude_guest=True),
        HostEvent(name="b", config=0x3C, leader=0),
    ]
    _, result = run(window("nop"), "passthrough", host_events=group, quirks=quirk)
    assert [event["state"] for event in result["perf"]["events"]] == states


def test_global_check_quirk():
    body = """
    WRMSR32 0x38f, 0
    WRMSR32 0x186, 0x4300c0
    xor eax, eax
    cpuid
    EXIT 0
    """
    assert run(body, "passthrough")[1]["counters"]["pmc0"] == 0
    # WRMSR to the selector itself, CPUID, OUT
    assert run(body, "passthrough", quirks=["v1-no-global-check"])[1]["counters"]["pmc0"] == 3
    assert run(body, "passthrough", quirks=["v1-no-global-check"], without=[39])[
        1
    ]["counters"]["pmc0"] == 0


def fixed_overflow(quirks=()):
    body = """
    WRMSR32 0x1b, 0xfee00d00
    WRMSR32 0x80f, 0x1ff
    WRMSR32 0x834, 0x20
    mov ecx, 0x309
    mov eax, -1
    mov edx, 0xffff
    wrmsr
    mov ecx, 0x38f
    xor eax, eax
    mov edx, 1
    wrmsr
    WRMSR32 0x38d, 0x9
    WRMSR32 0x38f, 0
    EXIT 0
    """
    return run(body, "passthrough", quirks=quirks)[1]


def test_emulated_instruction_overflows_a_fixed_counter():
    """The write that opens the counter is emulated and wraps it."""
    result = fixed_overflow()
    assert (result["pmis"], result["global_status"]) == (1, 1 << 32)
    result = fixed_overflow(["v1-fixed-no-pmi"])
    assert (result["pmis"], result["global_status"]) == (0, 1 << 32)
