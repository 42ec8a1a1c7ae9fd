"""`vpmu explain` tells a run: by hand for sixty accesses, by a table of its own for random ones."""

from __future__ import annotations

import random
import re
import subprocess
import sys

import pytest
from click.testing import CliRunner

from tests.conftest import ROOT
from tests.reference import access as reference
from tests.tools.profiles import cases
from vpmu_emu._jit import COMPILES
from vpmu_emu.cli import main
from vpmu_emu.errors import ConfigError
from vpmu_emu.explanation import Explanation, explain, explain_switch, parse_number, parse_settings
from vpmu_emu.linux.kvm.eventfilter import make_filter
from vpmu_emu.setup.msrfilter import REASONS, MsrFilter, MsrRange, parse_msr_filter
from vpmu_emu.tables.modes import SWITCH_POLICIES, VPMUS, mode_names
from vpmu_emu.tables.msrs import msr_name
from vpmu_emu.tables.mutants import MUTANTS

pytestmark = pytest.mark.uncompiled

ALLOW, DENY = 0, 1
EN = 0x4300C0  # INST_RETIRED.ANY_P in both rings, on
DENIED = {"filter": make_filter(DENY, [0x00C0], 0b001)}
ALLOWED = {"filter": make_filter(ALLOW, [0x00C0], 0b001)}
EXCLUDED = {"filter": make_filter(ALLOW, [0xC4, 0xFF << 56 | 1 << 55 | 0x20C4], masked=True)}
USER, USER_PCE = {"cpl": 3}, {"cpl": 3, "pce": True}
ALL_ON = {"msrs": ((0x38F, 0x7000000FF),)}
X2APIC = ((0x1B, 0xFEE0_0D00),)
NO_PMU = {"guest": {"pmu.version": 0}}
V1 = {"guest": {"pmu.version": 1}}
THROUGH = {"all_passthrough": True}
OF_ALL = "KVM passes it if n < guest.gp and (all_passthrough or without34)"
WHOLE = {"kvm": {"fixed_cap": 4}}
NARROW = {"guest": {"pmu.perf_caps": 0}}
FULL = {"host_events": ["instructions:D"] * 12}

NO_WRITE: dict = {"msr_filter": parse_msr_filter("""ranges = [
    { first = 0xc1, count = 8, access = ["write"] },
    { first = 0x186, count = 2, access = ["write"], allow = [0x187] },
]""")}
NO_MSR: dict = {"msr_filter": parse_msr_filter("""default = "deny"
ranges = [{ first = "IA32_APIC_BASE", allow = true }]""")}
ASKED = {"msr_filter": parse_msr_filter("""user_space = ["filter", "unknown"]
ranges = [{ first = 0x186, access = ["write"] }]""")}

# (mode, access, state, step that decides, what is in its words, source)
TRIPLES = [
    # privilege, before anything else
    ("bare", "wrmsr 0x38f 1", USER, "privilege", "WRMSR is for CPL 0", "SDM 2D WRMSR"),
    ("bare", "rdmsr 0xc1", USER, "privilege", "RDMSR is for CPL 0", "SDM 2B RDMSR"),
    ("emulated", "wrmsr 0x10a 1", USER, "privilege", "CPL 3", "SDM 3C 26.1.1"),
    ("passthrough", "rdmsr 0x10a", USER, "privilege", "CPL 3", "SDM 3C 26.1.1"),
    ("none", "wrmsr 0xc1 1", USER, "privilege", "no exit", "SDM 3C 26.1.1"),
    ("bare", "rdpmc 0", USER, "privilege", "CR4.PCE = 0", "SDM 2B RDPMC"),
    ("emulated", "rdpmc 0", USER, "privilege", "no exit", "SDM 3C 26.1.1"),
    ("passthrough", "rdpmc 99", USER, "privilege", "#GP before anything else", "SDM 3C 26.1.1"),
    # RDPMC
    ("bare", "rdpmc 0", USER_PCE, "hardware", "EDX:EAX = 0x0", "SDM 2B RDPMC"),
    ("bare", "rdpmc 8", {}, "hardware", "counter 8 does not exist, there are 8", "SDM 2B RDPMC"),
    ("bare", "rdpmc 0x40000003", {}, "hardware", "EDX:EAX", "SDM 3B 20.2.2"),
    ("bare", "rdpmc 0x40000004", {}, "hardware", "fixed counter 4 does not exist", "SDM 3B 20.2.2"),
    ("bare", "rdpmc 0x20000000", {}, "hardware", "EDX:EAX = 0x0", "SDM 3B 20.3.9.3"),
    ("bare", "rdpmc 0x20000000", {"cpu": "skx"}, "hardware", "cannot be read", "SDM 3B 20.3.9.3"),
    ("emulated", "rdpmc 0", USER_PCE, "KVM", "EDX:EAX = 0x0", "kvm_pmu_rdpmc"),
    ("emulated", "rdpmc 8", {}, "KVM", "counter 8 does not exist", "intel_rdpmc_ecx_to_pmc"),
    ("emulated", "rdpmc 0x40000003", {}, "KVM", "there are 3", "intel_rdpmc_ecx_to_pmc"),
    ("emulated", "rdpmc 0x10000", {}, "KVM", "is_vmware_backdoor_pmc", "kvm_pmu_rdpmc_vmware"),
    ("passthrough", "rdpmc 0x10000", {}, "hardware", "#GP", "patch 17: RDPMC passes"),
    ("passthrough", "rdpmc 7", {"guest": {"pmu.gp": 4}}, "hardware", "EDX:EAX = 0x0", "patch 24"),
    ("none", "rdpmc 0", {}, "KVM", "there is no PMU", "kvm_pmu_rdpmc"),
    ("emulated", "rdpmc 0x10000", NO_PMU, "KVM", "there is no PMU", "kvm_pmu_rdpmc"),
    # silicon
    ("bare", "wrmsr 0x186 0x4300c0", {}, "hardware", "accepted", "SDM 3B 20.2.1.1"),
    ("bare", "wrmsr 0x186 0x600000000", {}, "hardware", "reserved bits 0x200000000", "SDM 3B 20.2.1.1"),
    ("bare", "wrmsr 0x38f 0x100000000000", {}, "hardware", "reserved bits 0x100000000000", "SDM 3B 20.2.2"),
    ("bare", "wrmsr 0x38e 1", {}, "hardware", "is read-only", "SDM 3B 20.2.4"),
    ("bare", "wrmsr 0x391 1", {}, "hardware", "accepted", "SDM 3B 20.2.4.3"),
    ("bare", "rdmsr 0xc9", {}, "hardware", "does not know this MSR", "SDM 4 table 2-2"),
    ("bare", "wrmsr 0xc1 0xffffffff", {}, "hardware", "accepted", "SDM 3B 20.2.8"),
    ("bare", "wrmsr 0x4c1 0x1000000000000", {}, "hardware", "bits 0x1000000000000", "SDM 3B 20.2.8"),
    ("bare", "wrmsr 0x834 0x400", {}, "hardware", "not in x2APIC mode", "SDM 3A 11.12.2"),
    ("bare", "wrmsr 0x834 0x400", {"msrs": X2APIC}, "hardware", "accepted", "SDM 3A 11.5.1"),
    ("bare", "rdmsr 0x49", {}, "hardware", "is write-only", "SDM 4 table 2-2"),
    ("bare", "wrmsr 0xc0000082 0x800000000000", {}, "hardware", "not canonical", "SDM 3A 5.8.8"),
    ("bare", "wrmsr 0x277 2", {}, "hardware", "value not taken", "SDM 3A 12.12.2"),
    ("bare", "rdmsr 0xc0010000", {}, "hardware", "no such register", "SDM 4"),
    # no vPMU
    ("none", "wrmsr 0xc1 5", {}, "KVM", "the write does nothing", "kvm_set_msr_common"),
    ("none", "rdmsr 0x187", {}, "KVM", "it reads 0", "kvm_get_msr_common"),
    ("none", "wrmsr 0xc3 5", {}, "KVM", "no such register", "kvm_set_msr_common"),
    ("none", "rdmsr 0x38f", {}, "KVM", "no such register", "kvm_get_msr_common"),
    ("emulated", "wrmsr 0x38f 1", NO_PMU, "KVM", "no such register", "kvm_pmu_is_valid_msr"),
    ("emulated", "wrmsr 0x38f 1", V1, "KVM", "no such register", "intel_is_valid_msr"),
    ("passthrough", "wrmsr 0xc0010000 1", {}, "KVM", "the write does nothing", "kvm_set_msr_common"),
    # emulated
    ("emulated", "wrmsr 0x186 0x4300c0", {}, "KVM", "0x4300c0 accepted", "intel_pmu_set_msr"),
    ("emulated", "wrmsr 0x186 0x6300c0", {}, "KVM", "reserved bits 0x200000", "intel_pmu_set_msr"),
    ("emulated", "wrmsr 0x38e 1", {}, "KVM", "is read-only", "kvm_pmu_set_msr"),
    ("emulated", "wrmsr 0x391 1", {}, "KVM", "no such register", "kvm_pmu_is_valid_msr"),
    ("emulated", "wrmsr 0x309 -1", {}, "KVM", "accepted", "pmc_write_counter"),
    ("emulated", "wrmsr 0x186 0x4300c0", DENIED, "event filter", "pmc0 may not count: entry select 0xc0",
     "check_pmu_event_filter"),
    ("emulated", "wrmsr 0x186 0x4300c0", ALLOWED, "KVM", "accepted", "check_pmu_event_filter"),
    ("emulated", "wrmsr 0x186 0x4300c4", ALLOWED, "event filter", "no entry of the allow list",
     "check_pmu_event_filter"),
    ("emulated", "wrmsr 0x186 0x4320c4", EXCLUDED, "event filter", "exclude entry select 0xc4 umask 0x20",
     "is_gp_event_allowed"),
    ("emulated", "wrmsr 0x38d 3", DENIED, "KVM", "accepted", "pmc_is_globally_enabled"),
    ("emulated", "wrmsr 0x38d 3", DENIED | ALL_ON, "event filter", "fixed0 may not count",
     "is_fixed_event_allowed"),
    ("emulated", "wrmsr 0x6e0 1", {}, "KVM", "accepted", "handle_fastpath_set_tscdeadline"),
    # passthrough
    ("passthrough", "wrmsr 0x38f 3", {}, "hardware", "accepted", "patch 17"),
    ("passthrough", "wrmsr 0x186 0x4300c0", {}, "KVM", "accepted", "patch 35"),
    ("passthrough", "wrmsr 0x186 0x4300c0", DENIED, "event filter", "pmc0 may not count", "patch 35"),
    ("passthrough", "wrmsr 0x38d 3", DENIED, "event filter", "fixed_counter_bitmap 0x1", "patch 37"),
    ("passthrough", "wrmsr 0x186 0x4300c0", THROUGH, "hardware", "accepted", "cover letter"),
    ("passthrough", "wrmsr 0x4c1 5", NARROW, "KVM", "no such register", "patch 18"),
    ("passthrough", "wrmsr 0xc5 5", {"guest": {"pmu.gp": 4}}, "KVM", "no such register", "patch 17"),
    ("passthrough", "wrmsr 0x38e 1", {}, "hardware", "is read-only", "patch 17, SDM 3B 20.2.4"),
    ("passthrough", "wrmsr 0x10 0", {}, "KVM", "accepted", "vmx_set_msr"),
    # mediated
    ("mediated", "rdpmc 0", {}, "KVM", "EDX:EAX = 0x0", "kvm_need_rdpmc_intercept"),
    ("mediated", "rdpmc 0", WHOLE, "hardware", "EDX:EAX = 0x0", "kvm_need_rdpmc_intercept"),
    ("mediated", "rdpmc 0", {"cpu": "skx"}, "hardware", "EDX:EAX = 0x0", "kvm_need_rdpmc_intercept"),
    ("mediated", "rdpmc 7", {"guest": {"pmu.gp": 4}}, "KVM", "counter 7 does not exist", "kvm_pmu_rdpmc"),
    ("mediated", "wrmsr 0x38f 3", {}, "KVM", "accepted", "kvm_need_perf_global_ctrl_intercept"),
    ("mediated", "wrmsr 0x38f 3", {"cpu": "skx"}, "hardware", "accepted", "v6 22/44"),
    ("mediated", "wrmsr 0x4c1 5", {}, "hardware", "accepted", "v6 22/44"),
    ("mediated", "wrmsr 0x4c1 5", NARROW, "KVM", "no such register", "fw_writes_is_enabled"),
    ("mediated", "wrmsr 0x186 0x4300c0", {}, "KVM", "accepted", "intel_pmu_set_msr"),
    ("mediated", "wrmsr 0x186 0x4300c0", DENIED, "event filter", "pmc0 may not count", "v6 25/44"),
    ("mediated", "wrmsr 0x38d 3", DENIED, "event filter", "fixed_counter_bitmap 0x1", "v6 25/44"),
    # an MSR filter: before anything that KVM does, and never of the x2APIC
    ("emulated", "wrmsr 0x186 0x4300c0", NO_WRITE, "MSR filter", "the VMM denies this access: #GP",
     "kvm_msr_allowed"),
    ("emulated", "rdmsr 0x186", NO_WRITE, "KVM", "EDX:EAX = 0x0", "KVM_MSR_FILTER_WRITE"),
    ("emulated", "wrmsr 0x187 0x4300c0", NO_WRITE, "KVM", "accepted", "bitmap of the range"),
    ("none", "wrmsr 0xc1 5", NO_WRITE, "MSR filter", "denies", "kvm_msr_allowed"),
    ("emulated", "wrmsr 0x186 0x6300c0", NO_WRITE, "MSR filter", "denies", "__kvm_set_msr is not reached"),
    ("emulated", "wrmsr 0x186 0x4300c0", NO_WRITE | DENIED, "MSR filter", "denies", "pmu.c is not reached"),
    ("passthrough", "wrmsr 0xc1 5", NO_WRITE, "MSR filter", "denies", "vmx_set_intercept_for_msr"),
    ("passthrough", "rdmsr 0xc1", NO_WRITE, "hardware", "EDX:EAX = 0x0", "vmx_set_intercept_for_msr"),
    ("passthrough", "rdpmc 0", NO_MSR, "hardware", "EDX:EAX = 0x0", "no MSR"),
    ("emulated", "rdmsr 0x38f", NO_MSR, "MSR filter", "denies", "KVM_MSR_FILTER_DEFAULT_DENY"),
    ("emulated", "rdmsr 0x802", NO_MSR | {"msrs": X2APIC}, "hardware", "EDX:EAX = 0x0",
     "x2APIC MSRs are never filtered"),
    ("emulated", "wrmsr 0x38f 1", USER | NO_MSR, "privilege", "CPL 3", "SDM 3C 26.1.1"),
    # and with KVM_CAP_X86_USER_SPACE_MSR
    ("emulated", "wrmsr 0x186 0x4300c0", ASKED, "VMM", "refuses this access: #GP", "kvm_msr_user_space"),
    ("passthrough", "rdmsr 0xc9", ASKED, "VMM", "refuses", "complete_emulated_rdmsr"),
    ("emulated", "wrmsr 0x38e 1", ASKED, "KVM", "is read-only", "INVAL is not asked for"),
]  # fmt: skip


def asked(mode: str, words: str, state: dict | None = None) -> Explanation:
    action, what, *value = words.split()
    number = parse_number(value[0], "VALUE") if value else None
    return explain(action, what, number, vpmu=mode, **(state or {}))


def text(told: Explanation) -> str:
    return "\n".join(f"{step.what}: {step.verdict}" for step in told.steps)


def test_there_are_sixty():
    assert len(TRIPLES) >= 60
    assert all(source for *_, source in TRIPLES)


@pytest.mark.parametrize(
    ("mode", "words", "state", "step", "fragment", "source"), TRIPLES,
    ids=[f"{k}-{row[0]}-{row[1].replace(' ', '-')}" for k, row in enumerate(TRIPLES)],
)  # fmt: skip
def test_the_step_that_decides(mode, words, state, step, fragment, source):
    told = asked(mode, words, state)
    assert told.decides == step, source
    assert fragment in [s.verdict for s in told.steps if s.decides][-1], text(told)


# --- what the other steps say ---------------------------------------------------------------------------


def steps(told: Explanation, what: str) -> list[str]:
    return [step.verdict for step in told.steps if step.what == what]


@pytest.mark.parametrize(
    ("state", "exits", "counters"),
    [({}, True, "8 == 8 and 3 == 4"), (WHOLE, False, "8 == 8 and 4 == 4"),
     ({"cpu": "skx"}, False, "4 == 4 and 3 == 3"),
     ({"guest": {"pmu.gp": 7}} | WHOLE, True, "7 == 8 and 4 == 4")],
)  # fmt: skip
def test_why_rdpmc_exits_as_merged(state, exits, counters):
    (step,) = steps(asked("mediated", "rdpmc 0", state), "RDPMC exiting")
    assert step.startswith("1: the guest exits; KVM" if exits else "0: no exit; KVM")
    rule = "guest.version > 0 and guest.gp == host.gp and guest.fixed == host.fixed"
    assert f"passes it if {rule}" in step
    assert f"2 > 0 and {counters}" in step


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ("wrmsr 0x38f 1", "byte 0x871, bit 7 is 0: no exit; KVM passes it if guest.version > 1: 2 > 1"),
        ("rdmsr 0x38f", "byte 0x71, bit 7 is 0: no exit; KVM passes it if guest.version > 1: 2 > 1"),
        ("wrmsr 0x187 0", f"byte 0x830, bit 7 is 1: the guest exits; {OF_ALL}: 1 < 8 and (0 or 0)"),
        ("wrmsr 0xc0000100 0", "byte 0xc20, bit 0 is 0: no exit; KVM always passes it"),
        ("rdmsr 0xc0000080", "byte 0x410, bit 0 is 1: the guest exits; KVM never passes it"),
        ("rdmsr 0xc0010000", "0xc0010000 is outside of both ranges: the access always exits"),
        ("rdmsr 0x2000", "0x2000 is outside of both ranges: the access always exits"),
    ],
)
def test_the_bitmap(words, place):
    """SDM 3C 25.6.9: reads of low MSRs, reads of high ones, writes of low ones, writes of high ones."""
    assert steps(asked("passthrough", words), "MSR bitmap") == [place]


def test_a_counter_becomes_an_event():
    told = asked("emulated", f"wrmsr IA32_PERFEVTSEL0 {EN}")
    assert steps(told, "handler") == ["kvm_emulate_wrmsr, kvm_pmu_set_msr: a register of the guest's PMU"]
    assert steps(told, "request")[0] == "KVM_REQ_PMU"
    assert steps(told, "reprogram_counter") == ["pmc0: create, config 0x4300c0"]
    assert any("INST_RETIRED.ANY_P" in line for line in steps(told, "perf event"))
    assert "event 1: INACTIVE -> ACTIVE" in steps(told, "perf event")
    assert "IA32_FIXED_CTR_CTRL = 0xb" in steps(told, "host WRMSR")[-1]
    assert steps(told, "software count") == ["kvm_pmu_trigger_event: the instruction counts in pmc0"]
    assert steps(told, "VM-entry") == ["injects nothing"]
    assert "IA32_PERFEVTSEL0 0x0 -> 0x4300c0" in steps(told, "PMU of the guest")[0]


@pytest.mark.parametrize(
    ("state", "how"),
    [
        ({"msrs": ((0x38F, 0),)}, "pmc0: off by GLOBAL_CTRL"),
        (DENIED, "pmc0: off by the event filter"),
    ],
)
def test_why_a_counter_stays_off(state, how):
    assert steps(asked("emulated", f"wrmsr 0x186 {EN}", state), "reprogram_counter") == [how]
    off = asked("emulated", "wrmsr 0x186 0", {"msrs": ((0x186, EN),)})
    assert steps(off, "reprogram_counter") == ["pmc0: off"]


def test_a_pinned_event_that_finds_no_counter():
    told = asked("emulated", f"wrmsr 0x186 {EN}", FULL)
    assert any(line.endswith("INACTIVE -> ERROR") for line in steps(told, "perf event"))


def test_what_the_hardware_gets():
    told = asked("passthrough", f"wrmsr 0x186 {EN}")
    assert steps(told, "eventsel_hw") == ["pmc0: 0x4300c0, as the guest wrote it"]
    assert "IA32_PERFEVTSEL0 = 0x4300c0" in steps(told, "host WRMSR")[-1]
    denied = asked("passthrough", f"wrmsr 0x186 {EN}", DENIED)
    assert steps(denied, "eventsel_hw") == ["pmc0: 0x0, the guest wrote 0x4300c0"]
    assert "0x4300c0" not in steps(denied, "host WRMSR")[-1]
    assert denied.value == EN  # it reads back as it was written


def test_the_filter_of_another_counter_decides_nothing():
    told = asked("emulated", "wrmsr 0x10 0", DENIED | {"msrs": ((0x186, EN),)})
    assert told.decides == "KVM"
    assert steps(told, "event filter")[0].startswith("pmc0 may not count this instruction")
    assert not steps(told, "software count")


@pytest.mark.parametrize(
    ("mode", "words", "before", "reason"),
    [
        ("emulated", "wrmsr 0x186 1", ("MSR filter", "the VMM denies this access"), "WRMSR FILTER"),
        ("none", "rdmsr 0x38f", ("KVM", "does not know this MSR"), "RDMSR UNKNOWN"),
        ("emulated", "wrmsr 0x38e 1", ("KVM", "it would be #GP"), "WRMSR INVAL"),
    ],
)
def test_the_vmm_is_asked_and_refuses(mode, words, before, reason):
    ranges = 'ranges = [{ first = 0x186, access = ["write"] }]'
    every = parse_msr_filter(f'user_space = ["filter", "inval", "unknown"]\n{ranges}')
    told = asked(mode, words, {"msr_filter": every})
    assert steps(told, before[0]) == [f"{before[1]}, and wants to hear of it"]
    how, why = reason.split()
    assert steps(told, "exit to the VMM") == [f"KVM_EXIT_X86_{how}, KVM_MSR_EXIT_REASON_{why}"]
    assert steps(told, "VMM") == ["refuses this access: #GP"]
    assert steps(told, "VM-entry") == ["injects vector 13"]
    assert (told.decides, told.fault) == ("VMM", True)


def test_a_filter_makes_a_passed_register_exit():
    """vmx_set_intercept_for_msr() asks the filter, register by register and access by access."""
    (written,) = steps(asked("passthrough", "wrmsr 0xc1 0", NO_WRITE), "MSR bitmap")
    assert "bit 1 is 1: the guest exits" in written
    assert written.endswith("; the VMM's MSR filter denies it")
    (read,) = steps(asked("passthrough", "rdmsr 0xc1", NO_WRITE), "MSR bitmap")
    assert "bit 1 is 0: no exit" in read
    assert "filter" not in read


def test_fault_and_injection():
    told = asked("emulated", "wrmsr 0x38f 0x100000000000")
    assert told.fault
    assert steps(told, "VM-entry") == ["injects vector 13"]
    assert steps(told, "#GP")
    bare = asked("bare", "wrmsr 0x38f 0x100000000000")
    assert bare.fault
    assert not steps(bare, "VM-exit")


def test_the_fast_path():
    told = asked("passthrough", "wrmsr IA32_TSC_DEADLINE 1")
    assert steps(told, "fast path")[0].startswith("handle_fastpath_set_tscdeadline: EXIT_FASTPATH_REENTER")
    assert not steps(told, "context out")
    ipi = {"msrs": X2APIC}
    assert "REENTER_GUEST" in steps(asked("emulated", "wrmsr 0x830 0x40f1", ipi), "fast path")[0]
    old = asked("passthrough", "wrmsr 0x830 0x40f1", ipi)
    assert "EXIT_HANDLED" in steps(old, "fast path")[0]  # 6.7 leaves the inner loop


def test_the_state_is_the_guests_own():
    """Counters and registers that were written before, by name and by number."""
    state = {"msrs": parse_settings(["IA32_PERF_GLOBAL_CTRL=0", "0xc1=5"])}
    for mode in ("bare", *VPMUS):
        assert asked(mode, "rdmsr IA32_PMC0", state).value == 5
        assert asked(mode, "rdpmc 0", state | USER_PCE).value == 5
        assert asked(mode, "rdmsr IA32_PMC1 0x80000000").value == 0xFFFF_8000_0000


@pytest.mark.parametrize(
    ("words", "state", "message"),
    [
        ("wrmsr 0xc1 1", {"msrs": ((0x38E, 1),)}, "IA32_PERF_GLOBAL_STATUS=0x1 raises #GP"),
        ("wrmsr 0xc1 1", {"guest": {"pmu.version": 0}, "vpmu": "none"}, "guests have no PMU"),
        ("rdmsr 0x38e 1", {}, "raises #GP"),
    ],
)
def test_a_state_that_cannot_be(words, state, message):
    state = dict(state)
    with pytest.raises(ConfigError, match=re.escape(message)):
        asked(state.pop("vpmu", "emulated"), words, state)


@pytest.mark.parametrize(
    ("words", "message"),
    [("0xc1", "is not NAME=VALUE"), ("IA32_PMCX=1", "IA32_PMC"), ("0xc1=x", "is not a number")],
)
def test_settings_with_a_typo(words, message):
    with pytest.raises(Exception, match=message):
        parse_settings([words])


# --- the oracle ------------------------------------------------------------------------------------------


def question(rng: random.Random) -> reference.Question:
    mode = rng.choice(mode_names())
    cpu = rng.choice(("spr", "spr", "skx"))
    gp, fixed = (8, 3) if cpu == "spr" else (4, 3)
    version = 0 if mode == "none" else rng.choice((2, 2, 2, 2, 1, 0)) if mode != "bare" else 2
    if rng.random() < 0.4 and mode in VPMUS:
        gp = rng.randint(1, gp)
        fixed = rng.randint(0, fixed)
    action = rng.choice(("wrmsr", "wrmsr", "rdmsr", "rdpmc"))
    extra = {}
    if action == "rdpmc":
        index = rng.choice((0, 0, 0x4000, 0x2000, 1, 0x8000)) << 16 | rng.choice((*range(10), 64, 0xFFFF))
    else:
        index = rng.choice(reference.registers())
        if rng.random() < 0.4:
            index = rng.choice((0x186, 0x187, 0x38D, 0x38F, 0xC1, 0x4C2, 0x30A))
    value = rng.choice(
        (0, 1, EN, 0x4300C4, 0x43003C, 0x3, 0xB3, 0xF, 1 << rng.randrange(64), rng.getrandbits(64),
         rng.getrandbits(32), rng.getrandbits(48))
    )  # fmt: skip
    owner = mode in VPMUS and version
    if owner and rng.random() < 0.3:
        listed = tuple(rng.sample((0xC0, 0xC4, 0x3C), rng.randrange(3)))
        extra = {rng.choice(("deny", "allow")): listed, "fixed_bitmap": rng.randrange(8)}
    elif mode == "passthrough" and rng.random() < 0.2:
        extra = {"all_passthrough": True}
    ctrl = 0xFF if cpu == "spr" else 0xF
    if mode in VPMUS:
        ctrl = (1 << gp) - 1
    if version > 1 and rng.random() < 0.3:
        ctrl |= ((1 << fixed) - 1) << 32
    if mode != "bare" and rng.random() < 0.3:
        denied = {(rng.choice(reference.registers()), rng.choice(("rdmsr", "wrmsr"))) for _ in range(4)}
        if rng.random() < 0.6:
            denied.add((index, action))
        # What the guest writes before its access stays allowed.
        extra["msr_denied"] = tuple(sorted(denied - {(0x38F, "wrmsr"), (index, "rdpmc")}))
        extra["user_space"] = tuple(rng.sample(("filter", "unknown", "inval"), rng.randrange(4)))
    return reference.Question(
        action, index, value if action == "wrmsr" else 0, mode, cpu, rng.choice((0, 0, 0, 3)),
        rng.randrange(2), version, gp, fixed, rng.random() < 0.8 or mode not in VPMUS,
        ctrl=ctrl, **extra,
    )  # fmt: skip


def state_of(q: reference.Question) -> dict:
    state: dict = {"vpmu": q.mode, "cpu": q.cpu, "cpl": q.cpl, "pce": bool(q.pce)}
    if q.mode in VPMUS:
        caps = {"pmu.perf_caps": 0x2000 if q.fw else 0} if q.version else {}
        state["guest"] = {"pmu.version": q.version, "pmu.gp": q.gp, "pmu.fixed": q.fixed, **caps}
    if q.all_passthrough:
        state["all_passthrough"] = True
    if q.deny is not None or q.allow is not None:
        action = DENY if q.deny is not None else ALLOW
        state["filter"] = make_filter(action, list(q.deny or q.allow or ()), q.fixed_bitmap)
    if q.msr_denied:
        flags = {"rdmsr": 1, "wrmsr": 2}
        ranges = tuple(MsrRange(flags[action], msr, 1, bytes(8)) for msr, action in q.msr_denied)
        state["msr_filter"] = MsrFilter(0, ranges, sum(REASONS[name] for name in q.user_space))
    if q.ctrl >> 32:
        state["msrs"] = ((0x38F, q.ctrl),)
    return state


@pytest.mark.parametrize("part", range(4))
def test_random_accesses_against_the_decision_table(part):
    """An access in a state, decided a second time by tables that know nothing of the emulator."""
    rng = random.Random(part)
    for _ in range(cases(day=60, laws=2000, night=10_000, uncompiled=12) // 4):
        q = question(rng)
        wanted = reference.answer(q)
        told = explain(q.action, hex(q.index), q.value if q.action == "wrmsr" else None, **state_of(q))
        found = (told.decides, told.fault, bool(steps(told, "VM-exit")))
        assert found == (wanted.decides, wanted.fault, wanted.exits), f"{q}\n{wanted}\n{text(told)}"
        if wanted.value is not None and not wanted.fault:
            assert told.value == wanted.value, f"{q} {msr_name(q.index)}\n{wanted}\n{text(told)}"


# --- deliberate bugs -------------------------------------------------------------------------------------

COUNTING = ((0x186, EN),)
OVERFLOWN = ((0x38F, 0), (0xC1, 0xFFFF_FFFF), (0x186, EN), (0x38F, 1), (0x38F, 0))
# A bug, and an access for which it matters in one of the modes.
CHANGES = {
    "both-wrmsrs-count": ("wrmsr 0x10 0", {"msrs": COUNTING}),
    "no-wrmsr-counts": ("wrmsr 0x10 0", {"msrs": COUNTING}),
    "os-bit-ignored": ("wrmsr 0x186 0x4100c0", {}),
    "global-ctrl-ignored": (f"wrmsr 0x186 {EN}", {"msrs": ((0x38F, 0),)}),
    "perfctr-not-sign-extended": ("wrmsr 0xc1 0xffffffff", {}),
    "perfctr-stores-64-bits": ("wrmsr 0xc1 0x100000000", {}),
    "rdmsr-perfctr-32-bits": ("rdmsr 0xc1 0xffffffff", {}),
    "pmc-width-unchecked": ("wrmsr 0x4c1 0x1000000000000", {}),
    "fixed-write-32-bits": ("wrmsr 0x309 0x100000000", {}),
    "running-write-ignored": ("wrmsr 0x4c1 0x10000", {"msrs": COUNTING}),
    "evtsel-off-clears": ("wrmsr 0x186 0", {"msrs": ((0xC1, 0x10000), *COUNTING)}),
    "rdpmc-64-accepted": ("rdpmc 64", {}),
    "rdpmc-low-32-bits": ("rdpmc 0", {"msrs": ((0xC1, 0xFFFF_FFFF),)}),
    "fast-rdpmc-low-32-bits": ("rdpmc 0x80000000", {"msrs": ((0xC1, 0xFFFF_FFFF),)}),
    "fast-rdpmc-full-width": ("rdpmc 0x80000000", {"msrs": ((0xC1, 0xFFFF_FFFF),)}),
    "status-never-set": ("rdmsr 0x38e", {"msrs": OVERFLOWN}),
    "status-reset-ignored": ("wrmsr 0x390 1", {"msrs": OVERFLOWN}),
    "status-reset-clears-all": ("wrmsr 0x390 2", {"msrs": OVERFLOWN}),
    "absent-perfctr-faults": ("wrmsr 0xc1 1", {}),
    "global-ctrl-resets-to-0": ("rdmsr 0x38f", {}),
    "global-ctrl-reserved-accepted": ("wrmsr 0x38f 0x100000000000", {}),
    "fixed-ctrl-reserved-accepted": ("wrmsr 0x38d 0x100000", {}),
    "keep-selectors": ("wrmsr 0x187 0", {"msrs": COUNTING}),
    "lose-reprogram": ("wrmsr 0x38f 3", {"msrs": ((0x38F, 0), (0x186, EN), (0x187, EN))}),
    "filter-ignored": (f"wrmsr 0x186 {EN}", DENIED),
}
# Of counting, of later overflows and their interrupts: no access is decided by them.
ELSEWHERE = {
    "call-not-a-branch", "untaken-jcc-not-a-branch", "instructions-2-percent-more", "fixed0-counts-double",
    "fep-not-counted", "cpuid-exit-not-counted", "cmask-ignored", "fixed-status-never-set",
    "overflow-flagged-early", "status-reset-drops-pmi", "pmi-never-raised", "pmi-always-raised",
    "fixed-pmi-missing", "no-lvtpc-mask", "pmi-before-pmu", "spin-in-the-switch",
}  # fmt: skip


def test_every_bug_is_here():
    assert set(CHANGES) | ELSEWHERE == {row.name for row in MUTANTS}
    assert not set(CHANGES) & ELSEWHERE


@pytest.mark.few(8)
@pytest.mark.parametrize("bug", CHANGES)
def test_a_bug_changes_the_text(bug):
    words, state = CHANGES[bug]
    changed = []
    for mode in mode_names():
        if (mode in ("bare", "none") and "filter" in state) or (mode == "none" and "msrs" in state):
            continue
        plain = text(asked(mode, words, state))
        changed.append(text(asked(mode, words, {**state, "inject": [bug]})) != plain)
    assert any(changed)


# --- no waiting ------------------------------------------------------------------------------------------


@pytest.mark.skipif(not COMPILES, reason="compiled runs are meant")
def test_a_second_explanation_compiles_nothing():
    command = [sys.executable, "-m", "vpmu_emu", "explain", "wrmsr", "0x186", str(EN)]
    subprocess.run(command, check=True, capture_output=True)
    again = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "compiling" not in again.stderr


def test_a_patch_of_the_series_left_out():
    def exits(**options):
        steps = explain("rdmsr", "IA32_PMC0", vpmu="passthrough", **options).steps
        return {step.what: step.verdict for step in steps}

    assert "VM-exit" not in exits()
    without = exits(without=[17])
    assert without["VM-exit"] == "reason MSR_READ (31)"
    assert without["MSR bitmap"].endswith("the guest exits; KVM never passes it")


# --- a switch -------------------------------------------------------------------------------------------
def switched(*args: str, ok: bool = True) -> str:
    result = CliRunner().invoke(main, ["explain", "switch", *args])
    assert (result.exit_code == 0) == ok, result.output
    return result.output


def test_a_switch_is_told_access_by_access_as_the_docs_have_it():
    said = switched("--vpmu", "mediated", "--guest", "gp=1", "--guest", "fixed=1", "--msr", "IA32_PMC0=7")
    page = (ROOT / "docs" / "explain.md").read_text(encoding="utf-8")
    for line in said.strip().splitlines():
        assert line.rstrip() in page
    assert len(said.strip().splitlines()) == 18


@pytest.mark.parametrize("mode", ["passthrough", "mediated"])
@pytest.mark.parametrize("policy", SWITCH_POLICIES)
def test_the_sums_of_a_switch_are_those_of_its_lines(mode, policy):
    """The lines are the trace's, the sums the report's: two ways, one switch."""
    state = [(0x186, 0x4300C0), (0xC3, 7), (0x38D, 0xB)]
    told = explain_switch(vpmu=mode, switch=policy, msrs=state, host_events=["cycles:DH"])
    sums = {step.what: step.verdict for step in told.steps if step.what.endswith("in all")}
    for part in ("context out", "context in"):
        lines = [step.verdict for step in told.steps if step.what == part]
        words = sums[f"{part}, in all"]
        for name in ("RDMSR", "RDPMC"):
            there = re.search(rf"(\d+) {name}", words)
            assert sum(line.startswith(name) for line in lines) == (int(there[1]) if there else 0)
        writes = int(re.search(r"(\d+) WRMSR", words)[1])  # with what perf writes for the host's events
        behind = [step for step in told.steps if step.what == "host"] if part == "context out" else []
        assert writes == sum(step.verdict.startswith("WRMSR") for step in behind) + sum(
            line.startswith("WRMSR") for line in lines
        )
    assert told.steps[-1].verdict.endswith(f"policy {policy}")


def test_without_a_host_event_run_loop_switches_nothing():
    said = switched("--vpmu", "mediated", "--switch", "run-loop")
    assert said.count("nothing: it is not switched here") == 2
    assert "0 cycles, policy run-loop" in said


@pytest.mark.parametrize(("args", "said"), [
    (("--vpmu", "emulated"), "vpmu: nothing is switched: no guest owns the PMU in mode emulated"),
    (("--vpmu", "bare"), "nothing is switched: no guest owns the PMU in mode bare"),
    (("--vpmu", "passthrough", "--set", "pmu.version=3"), "no guest owns the PMU on this host"),
    (("--vpmu", "emulated", "--switch", "lazy"), "switch: no guest owns the PMU in mode emulated"),
    (("0x186",), "a switch is no access"), (("--cpl", "3"), "a switch is no access"),
    (("--vpmu", "mediated", "--msr", "IA32_PERFEVTSEL0=1<<40"), "is not a number"),
])  # fmt: skip
def test_a_switch_that_cannot_be_told(args, said):
    assert said in switched(*args, ok=False)


def test_an_access_needs_a_register():
    result = CliRunner().invoke(main, ["explain", "rdmsr"])
    assert result.exit_code == 2
    assert "Missing argument 'WHAT'" in result.output
