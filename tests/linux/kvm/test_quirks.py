"""The known bugs of the series, each with the exact value that it makes wrong, and what is right."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from tests.linux.guests import run, system
from vpmu_emu.linux.irq_vectors import KVM_VPMU_VECTOR
from vpmu_emu.linux.kvm.cpuid import leaves_of
from vpmu_emu.linux.kvm.eventfilter import make_filter
from vpmu_emu.linux.kvm.pmu_passthrough import kvm_passthrough_pmu_handle_event
from vpmu_emu.linux.kvm.vcpu import host_irq
from vpmu_emu.linux.kvm.vm import kvm_vcpu_after_set_cpuid, set_event_filter
from vpmu_emu.linux.printk import log_report
from vpmu_emu.linux.state import (
    CTX_TASK,
    KVM_REQ_PMI,
    PERF_TYPE_RAW,
    PERF_TYPE_SOFTWARE,
    QUIRKS,
    bits,
)
from vpmu_emu.linux.syscalls.host import Errno
from vpmu_emu.linux.syscalls.perf import _check_guest
from vpmu_emu.setup.hostevents import HostEvent
from vpmu_emu.tables.cpus import cpu

pytestmark = [pytest.mark.uncompiled, pytest.mark.inner]

MASK = (1 << 48) - 1


def wrmsr(index: int, value: int) -> str:
    return f"mov ecx, {index:#x}\nmov eax, {value & 0xFFFF_FFFF:#x}\nmov edx, {value >> 32:#x}\nwrmsr\n"


EXIT = "EXIT 0\n"
CPUID = "xor eax, eax\ncpuid\n"
OFF, ON = wrmsr(0x38F, 0), wrmsr(0x38F, 1)
COUNTS = wrmsr(0x186, 0x4300C0)


def go(body: str, *quirks: str, **options):
    return run(body, "passthrough", quirks=quirks, **options)[1]


def texts(result) -> list[str]:
    return [line["text"] for line in result["log"]]


@pytest.mark.parametrize(("quirks", "leaks"), [((), False), (("v1-fixed3-leak",), True)])
def test_the_fourth_fixed_counter(quirks, leaks):
    body = CPUID + "mov ecx, 0x40000003\nrdpmc\nmov esi, eax\nmov edi, edx\n" + EXIT
    result = go(body, *quirks, host_events=["slots:DH"])
    seen = result["registers"]["rdi"] << 32 | result["registers"]["rsi"]
    # what perf's own counter stood at when the guest was entered, which is what stays without patch 24
    whole = go(body, host_events=["slots:DH"], without=[24])["registers"]
    assert seen == ((whole["rdi"] << 32 | whole["rsi"]) if leaks else 0)
    assert whole["rdi"]
    # a CPU with three has nothing to leak
    three = "mov ecx, 0x40000003\nrdpmc\n" + EXIT
    with pytest.raises(AssertionError, match="triple fault"):
        go(three, *quirks, cpu="skx")


@pytest.mark.parametrize(("quirks", "states"), [
    ((), ["INACTIVE", "ACTIVE"]), (("v1-exit-order",), ["ACTIVE", "ERROR"]),
])  # fmt: skip
def test_who_comes_first_when_the_guest_leaves(quirks, states):
    """Two want the one counter that knows slots: the CPU's is flexible, the task's is pinned."""
    events = [
        HostEvent(name="cpu", config=0x400, exclude_guest=True),
        HostEvent(name="task", config=0x400, exclude_guest=True, pinned=True, task=True),
    ]
    result = go(CPUID + EXIT, *quirks, host_events=events)
    assert [event["state"] for event in result["perf"]["events"]] == states


@pytest.mark.parametrize("quirks", [(), ("v1-version-not-2",)])
def test_a_guest_with_version_1(quirks):
    body = wrmsr(0xC2, 1234) + COUNTS + "nop\n" * 5 + CPUID + "mov ecx, 0xc2\nrdmsr\nmov esi, eax\n" + EXIT
    result = go(body, *quirks, guest={"version": 1})
    moved = result["kvm"]["loads"] + result["kvm"]["puts"]
    if not quirks:
        assert result["registers"]["rsi"] == 1234
        assert result["counters"]["pmc0"] > 5
        assert texts(result) == []
        assert result["hw"]["pmc"][1] == 0
    else:
        # nothing is saved, so nothing was ever loaded: counters stay in the hardware, selectors outside
        assert result["hw"]["pmc"][1] == 1234
        assert result["hw"]["eventsel"] == [0] * 8
        assert texts(result) == ["kvm_intel: a PMU of version 1 is not switched"] * moved
        # PMC1 is where the second of two host events counts: the guest reads that
        host = go(body, *quirks, guest={"version": 1}, host_events=["branches:DH", "branches:DH"])
        assert host["registers"]["rsi"] not in (0, 1234)
    assert result["kvm"]["loads"] == result["kvm"]["puts"]


@pytest.mark.parametrize(("quirks", "status"), [((), 1), (("v1-wrap-at-zero",), 0)])
def test_software_counts_that_step_over_zero(quirks, status):
    """Several at once; an entry adds what one exit counted, so that no guest of this CPU sees it."""
    for start, added, seen in ((-2, 3, status), (-3, 3, 1), (-4, 3, 0)):
        machine = system(EXIT, "passthrough", quirks=quirks)
        pmu = machine.S.vcpus[0].pmu
        pmu.pmcs[0].counter, pmu.pmcs[0].emulated_counter = start & MASK, added
        pmu.incremented_pmc_idx = 1
        with np.errstate(over="ignore"):
            kvm_passthrough_pmu_handle_event(machine.S, machine.E, machine.S.vcpus[0])
        assert (int(pmu.pmcs[0].counter), int(pmu.global_status)) == (start + added & MASK, seen)


@pytest.mark.parametrize(("quirks", "value"), [((), 0xFF), (("v1-global-ctrl-reset",), 0)])
def test_global_ctrl_after_reset(quirks, value):
    body = "mov ecx, 0x38f\nrdmsr\nmov esi, eax\n" + COUNTS + "nop\n" * 5 + wrmsr(0x186, 0) + EXIT
    result = go(body, *quirks)
    assert result["registers"]["rsi"] == value
    assert (result["counters"]["pmc0"] > 5) == (value != 0)


@pytest.mark.parametrize(("quirks", "passes"), [((), False), (("v1-intercepts-once",), True)])
def test_a_second_cpuid_with_fewer_counters(quirks, passes):
    machine = system(EXIT, "passthrough", quirks=quirks)
    S, M, vcpu = machine.S, machine.M, machine.S.vcpus[0]

    def reads_pass(index: int) -> bool:
        return not M[int(vcpu.msr_bitmap) + index // 8] >> index % 8 & 1

    assert reads_pass(0xC1 + 7)
    leaves = [
        (leaf, a & ~0xFF00 | 0x400 if leaf == 0xA else a, b, c, d) for leaf, a, b, c, d in leaves_of(vcpu)
    ]
    kvm_vcpu_after_set_cpuid(S, M, cpu("spr"), 0, leaves)
    assert int(vcpu.pmu.nr_arch_gp_counters) == 4
    assert reads_pass(0xC1 + 3)
    assert reads_pass(0xC1 + 7) == passes
    assert not reads_pass(0x186)


# --- the filter -------------------------------------------------------------------------------------------


def filtered(body: str, *quirks: str):
    """A guest at its first CPUID, and a filter against instructions and fixed counter 0 comes in."""
    setup = OFF + COUNTS + wrmsr(0x38D, 3) + wrmsr(0x38F, 1 | 1 << 32)
    machine = system(setup + CPUID + body + EXIT, "passthrough", quirks=quirks)
    while not machine.exits().get("CPUID"):
        assert machine.step().reason == "step"
    before = machine.guest_pmu()
    set_event_filter(machine.S, make_filter(1, [0xC0], 1))
    machine.run()
    return before, machine.guest_pmu()


def test_a_new_filter_stops_counters_and_keeps_what_they_have_counted():
    before, after = filtered(CPUID + "nop\n" * 20)  # in hardware at the next entry
    for kind in ("fixed", "pmc"):
        assert after[kind][0] == before[kind][0] + 1 > 0  # XOR


def test_v1_goes_on_until_the_next_selector_write():
    before, after = filtered("nop\n" * 20, "v1-filter-update")
    assert after["pmc"][0] > before["pmc"][0] + 20
    assert after["fixed"][0] > before["fixed"][0] + 20
    # instructions that KVM does stop at once: CPUID twice, each with its XOR
    plain, emulated = filtered("", "v1-filter-update")[1], filtered(CPUID * 2, "v1-filter-update")[1]
    assert emulated["pmc"][0] - plain["pmc"][0] == 2
    # the same value again is a write too, and FIXED_CTR_CTRL looks at every field and clears what is denied
    _, after = filtered(COUNTS + "nop\n" * 20, "v1-filter-update")
    _, longer = filtered(COUNTS + "nop\n" * 40, "v1-filter-update")
    assert after["pmc"][0] == longer["pmc"][0]
    _, after = filtered(wrmsr(0x38D, 3) + "nop\n" * 20, "v1-filter-update")
    assert after["fixed"][0] == 0


# --- groups -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("quirks", "states"), [
    ((), ["ACTIVE", "ACTIVE"]), (("v1-sibling-error",), ["ERROR", "INACTIVE"]),
])  # fmt: skip
def test_a_software_event_in_a_group_of_hardware(quirks, states):
    """It has nothing to do with the PMU that is given away; version 1 looked at it all the same."""
    group = [
        HostEvent(name="a", config=0xC0, exclude_guest=True), HostEvent(name="b", config=0, leader=0),
    ]  # fmt: skip
    machine = system(CPUID + EXIT, "passthrough", host_events=group, quirks=quirks)
    machine.S.perf_events[1].pmu_type = PERF_TYPE_SOFTWARE
    assert machine.run().reason == "debug-exit"
    assert [event["state"] for event in machine.result(machine.stop(0, "debug-exit")).to_json()["perf"][
        "events"]] == states  # fmt: skip


# --- new events -------------------------------------------------------------------------------------------


def test_a_new_event_where_a_guest_has_the_pmu():
    """perf_event_alloc() reads the flag of the event's CPU, or of that on which its task is in a guest."""
    machine = system(CPUID + "nop\n" * 20 + EXIT, "passthrough", cores=2)
    S = machine.S
    while not machine.exits().get("CPUID"):
        machine.step()
    assert (int(S.cores[0].vmx.nonroot), int(S.percpu[0].force_exclude_guest)) == (1, 1)
    vmm = CTX_TASK + int(S.percpu[0].curr)

    def errno(cpu: int, ctx: int, *, kind: int = PERF_TYPE_RAW, exclude_guest: int = 0) -> str:
        try:
            _check_guest(S, SimpleNamespace(exclude_guest=exclude_guest), kind, cpu, ctx)
        except Errno as error:
            return str(error)
        return ""

    assert errno(0, 0) == errno(-1, vmm) == "EBUSY"
    assert errno(0, vmm + 1) == "EBUSY"  # another task's, for that CPU alone
    assert errno(1, 1) == errno(1, vmm) == errno(-1, vmm + 1) == ""
    assert errno(0, 0, exclude_guest=1) == errno(0, 0, kind=PERF_TYPE_SOFTWARE) == ""
    S.percpu[0].force_exclude_guest = 0  # as between the inner loop and the next
    assert errno(0, 0) == errno(-1, vmm) == ""


# --- the interrupt ----------------------------------------------------------------------------------------


def test_a_pmi_of_a_guest_that_is_gone():
    machine = system(EXIT, "passthrough")
    S = machine.S
    for vcpu, asked in ((0, True), (-1, False), (-1, False)):
        S.percpu[0].vcpu, S.vcpus[0].requests = vcpu, 0
        with np.errstate(over="ignore"):
            host_irq(S, machine.E, KVM_VPMU_VECTOR)
        assert bool(int(S.vcpus[0].requests) & int(KVM_REQ_PMI)) == asked
    assert [line["text"] for line in log_report(S)] == ["kvm: PMI of a guest on CPU 0, which runs none"]
    assert int(S.percpu[0].vpmi_irqs) == 3


# --- all of them, and a host that cannot ------------------------------------------------------------------


def test_v1_is_all_of_them():
    own = [name for name in QUIRKS if name.startswith("v1-")]
    assert len(own) == 10
    assert int(system(EXIT, "passthrough", quirks=["v1"]).S.config.quirks) == int(bits(QUIRKS, *own))
    assert go("mov ecx, 0x38f\nrdmsr\nmov esi, eax\n" + EXIT, "v1")["registers"]["rsi"] == 0


@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_a_host_pmu_below_version_4_gives_emulated_pmus(version):
    body = OFF + COUNTS + ON + "nop\n" * 5 + CPUID + OFF + EXIT
    result = go(body, settings={"pmu.version": version})
    assert ("MSR_READ" in result["exits"] or result["kvm"]["created"] > 0) == (version < 4)
    said = f"kvm: the host's PMU, version {version}, cannot be passed through"
    assert [text.split(":")[:2] for text in texts(result)] == ([said.split(":")] if version < 4 else [])
    assert result["counters"]["pmc0"] == 5 + 2 + 4
