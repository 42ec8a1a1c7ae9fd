"""The event filter against an oracle that reads the documentation, and through whole guests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.linux.guests import run, system, window
from vpmu_emu.errors import ConfigError
from vpmu_emu.linux.kvm.eventfilter import make_filter, masked_entry
from vpmu_emu.linux.kvm.filter import check_pmu_event_filter
from vpmu_emu.linux.kvm.vm import set_event_filter
from vpmu_emu.setup.filterfile import load_filter, parse_filter

pytestmark = [pytest.mark.uncompiled, pytest.mark.inner]

ALLOW, DENY = 0, 1
SMALL = st.sampled_from([0, 1, 0x20, 0x3C, 0xC0, 0xC4, 0xFF])
EVENTS = st.tuples(SMALL, SMALL, SMALL, st.booleans())  # select, mask, match, exclude


def oracle(action, events, masked, select, umask) -> bool:
    """Documentation/virt/kvm/api.rst, KVM_SET_PMU_EVENT_FILTER, read literally."""
    if masked:
        hit = [e[3] for e in events if e[0] == select and umask & e[1] == e[2]]
        listed = (False in hit) and (True not in hit)
    else:
        listed = (select, umask) in {(e[0], e[2]) for e in events}
    return listed if action == ALLOW else not listed


@given(st.sampled_from([ALLOW, DENY]), st.lists(EVENTS, max_size=8), st.booleans(), SMALL, SMALL)
def test_general_purpose_counters(action, events, masked, select, umask):
    if masked:
        entries = [masked_entry(*event) for event in events]
    else:
        entries = [event[0] | event[2] << 8 for event in events]
    machine = system("EXIT 0\n", "emulated")
    S, E = machine.S, machine.E
    set_event_filter(S, make_filter(action, entries, 0, masked))
    # only EVENT and UMASK of a selector are compared
    S.vcpus[0].pmu.pmcs[3].eventsel = 0x53_0000 | umask << 8 | select
    assert check_pmu_event_filter(S, E, S.vcpus[0], 3) == oracle(action, events, masked, select, umask)


@given(st.sampled_from([ALLOW, DENY]), st.integers(0, 15), st.integers(0, 2))
def test_fixed_counters(action, bitmap, i):
    machine = system("EXIT 0\n", "emulated")
    S, E = machine.S, machine.E
    set_event_filter(S, make_filter(action, [0xC0, 0x3C, 0x0300], bitmap))
    listed = bool(bitmap >> i & 1)
    assert check_pmu_event_filter(S, E, S.vcpus[0], 8 + i) == (listed == (action == ALLOW))
    set_event_filter(S, None)
    assert check_pmu_event_filter(S, E, S.vcpus[0], 8 + i)


@given(st.lists(st.integers(0, (1 << 64) - 1), max_size=20))
def test_legacy_entries_that_cannot_match_are_dropped(entries):
    made = make_filter(DENY, entries)
    assert len(made.includes) == sum(e < 1 << 16 for e in entries)
    assert not made.excludes


@pytest.mark.parametrize(("arguments", "key"), [
    ((2, []), "filter.action"),
    ((DENY, [0xC0] * 301), "filter.events"),
    ((DENY, [0xC0, 1 << 16], 0, True), "filter.events[1]"),
    ((DENY, [1 << 35], 0, True), "filter.events[0]"),
])  # fmt: skip
def test_what_the_ioctl_refuses(arguments, key):
    with pytest.raises(ConfigError) as error:
        make_filter(*arguments)
    assert error.value.key == key


@pytest.mark.parametrize(("text", "key"), [
    ("", "f.action"),
    ("action = 'forbid'", "f.action"),
    ("action = 1", "f.action"),
    ("acton = 'deny'", "f.acton"),
    ("action = 'deny'\nmasked = 1", "f.masked"),
    ("action = 'deny'\nevents = 3", "f.events"),
    ("action = 'deny'\nevents = ['instructons']", "f.events[0]"),
    ("action = 'deny'\nevents = ['cycles', -1]", "f.events[1]"),
    ("action = 'deny'\nevents = [{umask = 1}]", "f.events[0].select"),
    ("action = 'deny'\nevents = [{select = 256}]", "f.events[0].select"),
    ("action = 'deny'\nevents = [{select = 1, mask = 1}]", "f.events[0].mask"),
    ("action = 'deny'\nmasked = true\nevents = [{select = 1, umsk = 1}]", "f.events[0].umsk"),
    ("action = 'deny'\nfixed_counter_bitmap = -1", "f.fixed_counter_bitmap"),
    ("action = ", "f"),
])  # fmt: skip
def test_toml_errors_name_the_key(text, key):
    with pytest.raises(ConfigError) as error:
        parse_filter(text, "f")
    assert error.value.key == key
    assert str(error.value).startswith(f"{key}: ")


def test_hints():
    with pytest.raises(ConfigError, match="did you mean instructions"):
        parse_filter("action = 'deny'\nevents = ['instructons']")
    with pytest.raises(ConfigError, match="at line 2"):
        parse_filter("action = 'deny'\nevents = ]\n")
    with pytest.raises(ConfigError, match="cannot read"):
        load_filter("/nonexistent/filter.toml")


def test_names_numbers_and_tables_mean_the_same():
    texts = ("'branches'", "0xc4", "{ select = 0xc4 }", "{ select = 0xc4, umask = 0 }")
    for masked in ("true", "false"):
        made = {parse_filter(f"action = 'deny'\nmasked = {masked}\nevents = [{t}]").includes for t in texts}
        assert len(made) == 1


DENY_C0 = make_filter(DENY, [0xC0], 0b001)


@pytest.mark.parametrize("mode", ["emulated", "passthrough", "mediated"])
def test_a_denied_event_never_counts(mode):
    body = window("""
    WRMSR32 0x38d, 0x33
    WRMSR32 0x187, 0x4300c4
    mov ecx, 0x38f
    mov eax, 3
    mov edx, 3
    wrmsr
    xor eax, eax
    cpuid
    nop
    RDMSR32 0x186
    mov esi, eax
    jmp 1f
1:
    """)
    _, result = run(body, mode, filter=DENY_C0)
    counters = result["counters"]
    assert counters["pmc0"] == counters["fixed0"] == 0
    assert counters["pmc1"] == 1
    assert counters["fixed1"] > 0
    assert result["registers"]["rsi"] == 0x4300C0
    if mode == "passthrough":
        assert result["kvm"]["eventsel_hw"][:2] == [0, 0x4300C4]
        assert result["kvm"]["fixed_ctr_ctrl_hw"] == 0x30
    assert run(body, mode, filter=DENY_C0, inject=["filter-ignored"])[1]["counters"]["pmc0"] > 0


@pytest.mark.parametrize(("quirk", "allowed"), [((), False), (("v1-filter-update",), True)])
def test_a_new_filter_reaches_programmed_selectors(quirk, allowed):
    body = window(" xor eax, eax\n cpuid\n nop\n nop\n cpuid\n" + " nop\n" * 20)
    machine = system(body, "passthrough", quirks=quirk)
    while not machine.exits().get("CPUID"):
        assert machine.step().reason == "step"
    before = machine.guest_pmu()["pmc"][0]
    set_event_filter(machine.S, DENY_C0)
    machine.run()
    assert (machine.guest_pmu()["pmc"][0] > before + 10) == allowed


def test_a_filter_needs_intercepted_selectors():
    with pytest.raises(ConfigError):
        system("EXIT 0\n", "passthrough", filter=DENY_C0, all_passthrough=True)
