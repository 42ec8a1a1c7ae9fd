"""The mediated vPMU: its context switch access by access, its filter, and what exits in it."""

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
    system,
    window,
)
from vpmu_emu.errors import ConfigError, HostError
from vpmu_emu.linux.kvm.eventfilter import make_filter
from vpmu_emu.linux.kvm.vm import set_event_filter
from vpmu_emu.linux.state import KVM_PMU_EVENT_ALLOW, KVM_PMU_EVENT_DENY
from vpmu_emu.linux.trace_kinds import TR_PMU_LOAD, TR_PMU_PUT

pytestmark = [pytest.mark.uncompiled, pytest.mark.inner]

LVTPC = 0x834
STATUS_SET = 0x391
MASKED = 0x100F5  # vector 0xF5, masked as the guest's own LVTPC is after RESET
WHOLE = {"kvm": {"fixed_cap": 4}}  # a guest with every counter of spr


def load_sequence(counters, selectors, fixed, fixed_ctrl, status, left=None, hw_status=0):
    """What load must do for a guest with these registers; `left`: of the host in the counters."""
    left = left or [0] * (len(counters) + len(fixed))
    expected = [("wrmsr", GLOBAL_CTRL, 0), ("wrmsr", LVTPC, MASKED)]
    for i, (counter, selector) in enumerate(zip(counters, selectors, strict=True)):
        expected += [("rdpmc", i, left[i])]
        expected += [("wrmsr", 0x4C1 + i, counter)] if counter != left[i] else []
        expected += [("wrmsr", 0x186 + i, selector)]
    for i, counter in enumerate(fixed):
        there = left[len(counters) + i]
        expected += [("rdpmc", 1 << 30 | i, there)]
        expected += [("wrmsr", 0x309 + i, counter)] if counter != there else []
    expected += [("rdmsr", GLOBAL_STATUS, hw_status)]
    toggle = status ^ hw_status
    expected += [("wrmsr", OVF_CTRL, hw_status & toggle)] if hw_status & toggle else []
    expected += [("wrmsr", STATUS_SET, status & toggle)] if status & toggle else []
    return [*expected, ("wrmsr", FIXED_CTR_CTRL, fixed_ctrl)]


def put_sequence(counters, selectors, fixed, fixed_ctrl, status):
    """What put must do with these values in the hardware."""
    expected = [("rdmsr", GLOBAL_STATUS, status)] + ([("wrmsr", OVF_CTRL, status)] if status else [])
    expected += [("wrmsr", FIXED_CTR_CTRL, 0)] if fixed_ctrl else []
    for i, (counter, selector) in enumerate(zip(counters, selectors, strict=True)):
        expected += [("rdpmc", i, counter)]
        expected += [("wrmsr", 0x4C1 + i, 0)] if counter else []
        expected += [("wrmsr", 0x186 + i, 0)] if selector else []
    for i, counter in enumerate(fixed):
        expected += [("rdpmc", 1 << 30 | i, counter)]
        expected += [("wrmsr", 0x309 + i, 0)] if counter else []
    return [*expected, ("wrmsr", LVTPC, 0x400)]


def switches(machine) -> list[list[tuple[str, int, int]]]:
    """The host's accesses of each turn: from a load to the put that ends it."""
    loads, puts = positions(machine, TR_PMU_LOAD), positions(machine, TR_PMU_PUT)
    return [host_accesses(machine, a, b) for a, b in zip(loads, puts, strict=True)]


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
    nop
    nop
    xor eax, eax
    cpuid
    EXIT 0
"""


def test_one_put_and_one_load():
    machine, result = run(GUEST, "mediated", trace=True, **WHOLE)
    turns = switches(machine)
    assert len(turns) == result["kvm"]["loads"] == result["exits"]["MSR_WRITE"] + 2
    # opened by a passed-through write: nop nop xor have retired, PMC1 has wrapped on the first nop
    selectors = [INSTRUCTIONS] * 2 + [0] * 6
    before = load_sequence([0, (1 << 48) - 1] + [0] * 6, selectors, [5, 0, 0, 0], 0xB, 0)
    out = put_sequence([3, 2] + [0] * 6, selectors, [8, 0, 0, 0], 0xB, 1 << 1)
    assert turns[-2] == [*before, *out]
    # CPUID was emulated: one more on all three, in software, at once
    after = load_sequence([4, 3] + [0] * 6, selectors, [9, 0, 0, 0], 0xB, 1 << 1)
    assert turns[-1][: len(after)] == after


def test_where_global_ctrl_exits_its_value_goes_to_the_vmcs_when_it_is_written():
    _, result = run(GUEST, "mediated")
    assert result["exits"]["MSR_WRITE"] == 5
    # both writes of GLOBAL_CTRL exit: the one that opens counts itself, and wraps PMC1; then nop, nop, xor,
    # CPUID, mov, OUT
    assert (result["counters"]["pmc0"], result["counters"]["pmc1"]) == (7, 6)
    assert result["global_status"] == 1 << 1


def test_an_idle_guest_costs_ten_writes_and_eleven_looks():
    for options, gp, fixed in (({}, 8, 3), (WHOLE, 8, 4), ({"guest": {"gp": 2, "fixed": 1}}, 2, 1)):
        machine, _ = run("    xor eax, eax\n    cpuid\n    EXIT 0\n", "mediated", trace=True, **options)
        first = switches(machine)[0]
        load = load_sequence([0] * gp, [0] * gp, [0] * fixed, 0, 0)
        assert first == [*load, *put_sequence([0] * gp, [0] * gp, [0] * fixed, 0, 0)]
        assert sum(what == "wrmsr" for what, index, _ in load if index != LVTPC) == 1 + gp + 1


def test_what_the_host_left_in_a_counter_is_written_over():
    machine, result = run(window("nop"), "mediated", trace=True, host_events=["r81d0:DH", "r82d0:DH"])
    looks = [value for turn in switches(machine) for what, index, value in turn if what == "rdpmc"]
    assert any(looks)
    assert result["counters"]["pmc0"] == run(window("nop"), "bare")[1]["counters"]["pmc0"]
    assert result["kvm"]["dirty_puts"] == 0
    assert not any(result["hw"]["eventsel"] + result["hw"]["pmc"] + result["hw"]["fixed"][:3])


def test_status_bits_are_toggled_not_written():
    """A status that the hardware has already costs no write, one that it has too much is reset."""
    machine, _ = run(GUEST, "mediated", trace=True, **WHOLE)
    accesses = [access for turn in switches(machine) for access in turn]
    assert [value for what, index, value in accesses if (what, index) == ("wrmsr", STATUS_SET)] == [1 << 1]
    assert [value for what, index, value in accesses if (what, index) == ("wrmsr", OVF_CTRL)] == [2, 2]


def test_injected_bug_leaves_selectors_behind():
    _, result = run(GUEST, "mediated", inject=["keep-selectors"])
    assert result["hw"]["eventsel"][:2] == [INSTRUCTIONS] * 2
    assert result["kvm"]["dirty_puts"] > 0


@pytest.mark.parametrize(
    ("options", "exits"),
    [({}, 4), ({"kvm": {"fixed_cap": 4}}, 1), ({"cpu": "skx"}, 1), ({"cpu": "icx"}, 4),
     ({"cpu": "skx", "guest": {"gp": 3}}, 4), ({"cpu": "skx", "guest": {"fixed": 2}}, 4)],
)  # fmt: skip
def test_the_guests_shape_against_the_hosts_decides_what_exits(options, exits):
    """The selector, and three writes of GLOBAL_CTRL and RDPMC where a counter of the host is missing."""
    body = window("mov ecx, 0\nrdpmc\nnop\nxor eax, eax\ncpuid")
    machine, result = run(body, "mediated", **options)
    assert result["exits"].get("MSR_WRITE") == (4 if exits == 4 else 1)
    assert result["exits"].get("RDPMC", 0) == (1 if exits == 4 else 0)
    assert result["counters"]["pmc0"] == run(body, "bare")[1]["counters"]["pmc0"]
    assert machine.S.config.save_global_ctrl == int(options.get("cpu", "spr") == "spr")


def test_counters_pass_whatever_the_shape():
    body = "\n".join(f"WRMSR32 {index:#x}, 7\nRDMSR32 {index:#x}" for index in (0xC1, 0x4C2, 0x309))
    for options in ({}, {"guest": {"gp": 2, "fixed": 1}}):
        _, result = run(body + "\nEXIT 0\n", "mediated", **options)
        assert set(result["exits"]) == {"IO_INSTRUCTION"}
        assert [result["counters"][name] for name in ("pmc0", "pmc1", "fixed0")] == [7] * 3


def test_without_full_width_their_addresses_exit():
    gp = "mov ecx, 0x4c1\nxor eax, eax\nxor edx, edx\nwrmsr\nEXIT 0\n"
    stop = system(gp, "mediated", guest={"perf_caps": 0}).run()
    assert stop.reason == "triple-fault"  # #GP without a handler


def test_a_guest_without_a_pmu_leaves_the_hosts_events_alone():
    """kvm_vcpu_has_mediated_pmu(): no version, no switch; their events stop by GLOBAL_CTRL."""
    _, result = run("    xor eax, eax\n    cpuid\n    EXIT 0\n", "mediated", guest={"version": 0},
                    host_events=["cycles:DH"])  # fmt: skip
    event = result["perf"]["events"][0]
    assert (result["kvm"]["loads"], event["state"]) == (0, "ACTIVE")
    plain = run("    xor eax, eax\n    cpuid\n    EXIT 0\n", "mediated", host_events=["cycles:DH"])[1]
    assert plain["kvm"]["loads"] == plain["kvm"]["puts"] > 0


# --- selectors and the filter ---------------------------------------------------------------------------
def deny(*events, fixed=0):
    return make_filter(KVM_PMU_EVENT_DENY, list(events), fixed_counter_bitmap=fixed)


def test_a_denied_selector_loses_its_enable_bit_alone():
    machine, result = run(window("nop\nxor eax, eax\ncpuid"), "mediated", filter=deny(0xC0))
    assert result["kvm"]["eventsel_hw"][0] == INSTRUCTIONS & ~(1 << 22)
    assert int(machine.S.vcpus[0].pmu.pmcs[0].eventsel) == INSTRUCTIONS
    assert result["counters"]["pmc0"] == 0


def test_the_guest_reads_what_it_wrote():
    body = "WRMSR32 0x186, 0x4300c0\nRDMSR32 0x186\nmov esi, eax\nEXIT 0\n"
    _, result = run(body, "mediated", filter=deny(0xC0))
    assert result["registers"]["rsi"] == INSTRUCTIONS


FIXED = """
    WRMSR32 0x38d, 0
    mov ecx, 0x38f
    xor eax, eax
    mov edx, 3
    wrmsr
    WRMSR32 0x38d, 0x0b
    nop
    WRMSR32 0x38d, 0xbb
    nop
    nop
    WRMSR32 0x38d, 0
    EXIT 0
"""


@pytest.mark.parametrize(("quirks", "counts"), [((), 0), (("7.0-fixed-filter",), 5)])
def test_a_denied_fixed_counter_stays_off_when_another_changes(quirks, counts):
    """7.0 copied FIXED_CTR_CTRL and asked the filter about the fields alone that the guest had changed."""
    machine, result = run(FIXED, "mediated", filter=deny(fixed=1), quirks=quirks)
    # nop, nop, and the three moves before the closing write, in hardware; software asks the filter itself
    assert result["counters"]["fixed0"] == counts
    assert result["counters"]["fixed1"] > 0
    assert int(machine.S.vcpus[0].pmu.fixed_ctr_ctrl) == 0


def test_what_is_allowed_counts():
    allow = make_filter(KVM_PMU_EVENT_ALLOW, [0xC0], fixed_counter_bitmap=1)
    body = window("nop\nxor eax, eax\ncpuid\nnop")
    counts = [run(body, mode, **more)[1]["counters"]["pmc0"] for mode, more in (
        ("mediated", {"filter": allow}), ("bare", {}),
    )]  # fmt: skip
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("fixed", [False, True])
def test_a_filter_installed_later_holds_from_the_next_entry_and_keeps_what_was_counted(fixed):
    opens = "mov ecx, 0x38f\nmov eax, 1\nmov edx, 1\nwrmsr\n"
    body = f"WRMSR32 0x38f, 0\nWRMSR32 0x186, 0x4300c0\nWRMSR32 0x38d, 0xb\n{opens}" + (
        ("nop\n" * 20 + "xor eax, eax\ncpuid\n") * 2 + "nop\n" * 20 + "EXIT 0\n"
    )
    name = "fixed0" if fixed else "pmc0"
    machine = system(body, "mediated")
    for _ in range(100):
        if int(machine.S.vcpus[0].pmu.pmcs[8 if fixed else 0].counter) > 20:
            break
        machine.step()
    counted = int(machine.S.vcpus[0].pmu.pmcs[8 if fixed else 0].counter)
    assert counted > 20
    set_event_filter(machine.S, deny(0xC0, fixed=1))
    result = machine.result(machine.run()).to_json()
    # up to the next exit hardware goes on: 20 times nop, xor; CPUID itself asks the filter
    assert result["counters"][name] == counted + 21


# --- software counts, PMIs ------------------------------------------------------------------------------
def fixed_overflow(**options):
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
    return run(body, "mediated", **options)[1]


def test_an_emulated_instruction_that_wraps_a_counter_brings_its_pmi():
    for options in ({}, WHOLE, {"cpu": "skx"}):
        result = fixed_overflow(**options)
        assert (result["pmis"], result["global_status"]) == (1, 1 << 32)


PMI = """
    WRMSR32 0x1b, 0xfee00d00
    WRMSR32 0x80f, 0x1ff
    WRMSR32 0x834, {lvtpc:#x}
    WRMSR32 0x38f, 0
    mov ecx, 0x4c1
    mov eax, -40
    mov edx, 0xffff
    wrmsr
    WRMSR32 0x186, 0x5300c0
    WRMSR32 0x38f, 1
    {nops}
    WRMSR32 0x38f, 0
    EXIT 0
"""


@pytest.mark.parametrize("options", [{}, WHOLE, {"cpu": "skx"}])
def test_a_pmi_of_the_guest_comes_by_its_own_vector(options):
    body = PMI.format(lvtpc=0x20, nops="nop\n" * 60)
    _, result = run(body, "mediated", **options)
    assert (result["pmis"], result["pmis_hw"], result["perf"]["vpmi_irqs"]) == (1, 1, 1)
    assert result["exits"]["EXTERNAL_INTERRUPT"] == 1
    assert result["perf"]["nmis"] == 0
    assert result["global_status"] == 1


def test_a_masked_lvtpc_keeps_the_hardware_from_interrupting():
    _, result = run(PMI.format(lvtpc=0x10020, nops="nop\n" * 60), "mediated")
    assert (result["pmis"], result["perf"]["vpmi_irqs"], result["global_status"]) == (0, 0, 1)
    assert "EXTERNAL_INTERRUPT" not in result["exits"]


# --- the host -------------------------------------------------------------------------------------------
def test_a_host_event_that_leaves_guests_out_stands_still_with_its_clock():
    """T_GUEST: neither `enabled` nor `running` goes on while the guest's context is loaded."""
    def times(nops):
        _, result = run(window("nop\n" * nops), "mediated", host_events=["instructions:DH"])
        (event,) = result["perf"]["events"]
        assert event["state"] == "ACTIVE"
        return [event[key] for key in ("count", "enabled", "running")]

    short, long = times(10), times(4000)
    assert short[0] == long[0]
    assert short[1] - short[2] == long[1] - long[2]  # what the host needed before it was first scheduled
    assert abs(long[2] - short[2]) < 100
    _, before = run(window("nop\n" * 4000), "passthrough", host_events=["instructions:DH"])
    (event,) = before["perf"]["events"]
    assert event["enabled"] - event["running"] > long[1] - long[2] + 4000 / 6


def test_what_a_cpu_lacks_is_named():
    for settings, said in (
        ({"pmu.version": 3}, "version 3: no GLOBAL_STATUS_SET"), ({"pmu.perf_caps": 0x400}, "no FW_WRITES"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=said) as refused:
            system("hlt", "mediated", settings=settings)
        assert refused.value.key == "vpmu mediated"
        assert refused.value.allowed.startswith("--set pmu.")


@pytest.mark.parametrize(
    ("options", "errno", "said"),
    [
        ({"watchdog": "nmi"}, 16, "KVM_CREATE_VCPU fails with EBUSY"),
        ({"host_events": ["cycles"]}, 95, "cycles: counts in guests"),
        ({"host_events": ["cycles:H", "instructions:G"]}, 95, "instructions:G: counts in guests"),
    ],
)
def test_events_that_count_in_guests_are_refused_by_name(options, errno, said):
    with pytest.raises(HostError, match=said) as refused:
        system("hlt", "mediated", **options)
    assert refused.value.errno == errno


# --- the fast path --------------------------------------------------------------------------------------
FASTPATH = """
    WRMSR32 0x1b, 0xfee00d00
    WRMSR32 0x80f, 0x1ff
    WRMSR32 0x832, 0x40020
    WRMSR32 {index:#x}, {value:#x}
    {count}
    WRMSR32 0x6e0, 0x7fffffff
    WRMSR32 0x6e0, 0x6fffffff
    invd
    EXIT 0
"""


@pytest.mark.parametrize(
    ("index", "value", "fast"),
    [(0x10A, 0, 3), (0x186, INSTRUCTIONS, 0), (0x186, INSTRUCTIONS & ~(1 << 22), 3), (0x186, 0x43003C, 3),
     (0x187, INSTRUCTIONS, 0), (0x186, 0x4300C4, 3), (0x38D, 0xB, 3)],
)  # fmt: skip
def test_the_fast_path_is_refused_while_instructions_are_counted(index, value, fast):
    """By GLOBAL_CTRL as it is now: after RESET that is the general-purpose counters, no fixed one."""
    selects = f"WRMSR32 {index:#x}, {value:#x}" if index != 0x10A else ""
    body = FASTPATH.replace("    WRMSR32 {index:#x}, {value:#x}\n", selects + "\n").format(count="")
    for options in ({}, WHOLE):
        _, result = run(body, "mediated", **options)
        assert result["kvm"]["fastpaths"] == fast
        assert result["kvm"]["loads"] == result["kvm"]["entries"] - fast


def test_what_the_fast_path_refused_counts_once():
    plain = FASTPATH.replace("    WRMSR32 {index:#x}, {value:#x}\n", "")
    body = plain.format(count="WRMSR32 0x186, 0x4300c0")
    wanted = run(body.replace("invd", "nop"), "bare")[1]["counters"]["pmc0"]
    # the selector's write opens in KVM and counts; OUT ends the run in both
    assert run(body, "mediated")[1]["counters"]["pmc0"] == wanted + 1
