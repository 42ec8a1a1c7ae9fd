"""What a guest does in hardware is said in one column; a wrong formula is refused with row and key."""

from __future__ import annotations

import attrs
import pytest

from vpmu_emu.errors import ConfigError
from vpmu_emu.tables.modes import VPMUS
from vpmu_emu.tables.msrs import MSRS, RDPMC_PASSED, Passed, Shape, by_name
from vpmu_emu.tables.passed import (
    Met,
    check,
    passed_msrs,
    rdpmc_passes,
    rule_for,
    rule_of,
    rule_words,
)
from vpmu_emu.tables.vmcs import vmcs_field

pytestmark = pytest.mark.uncompiled

HOST = Shape(version=5, gp=8, fixed=4, perf_capabilities=0xF400)
GUEST = Shape(version=2, gp=4, fixed=3, perf_capabilities=0x2000)


@pytest.mark.parametrize(
    ("rules", "place", "words"),
    [
        ({"passthrough": "n < guest.pg"}, "passthrough", "unknown name 'guest.pg'"),
        ({"every": "n < guest.gp and ("}, "every", "not a formula"),
        ({"emulated": "n == 1 and guest.gp ** 2"}, "emulated", "not allowed"),
        ({"emulated": "false and open(n)"}, "emulated", "not allowed"),
        ({"passthrough": "n if true else host.gpp"}, "passthrough", "unknown name 'host.gpp'"),
        ({"mediatted": "true"}, "mediatted", "no such vPMU"),
    ],
)
def test_a_wrong_column_is_named_with_its_row(rules, place, words):
    passed = Passed(rules={vpmu: (rule, "false") for vpmu, rule in rules.items()})
    with pytest.raises(ConfigError) as caught:
        check("IA32_PMC", passed, Met().names() | {"n": 0})
    assert str(caught.value).startswith(f"msrs.toml: IA32_PMC: passed.{place}: ")
    assert words in str(caught.value)


def test_rows_say_why_and_who_decides():
    for row in MSRS:
        assert bool(row.passed.rules) == bool(row.passed.why) == bool(row.passed.by), row.name
        if row.passed.rules and row.name != "IA32_TIME_STAMP_COUNTER":
            assert row.passed.rules.keys() == {"every"} or "every" not in row.passed.rules, row.name
    assert RDPMC_PASSED.rules


def test_what_passes_follows_the_guests_shape():
    met = Met(guest=GUEST, host=HOST)
    found = {index for index, _, _ in passed_msrs("passthrough", met)}
    emulated = {index for index, _, _ in passed_msrs("emulated", met)}
    pmu = {*range(0xC1, 0xC5), *range(0x4C1, 0x4C5), *range(0x309, 0x30C), 0x38E, 0x38F, 0x390}
    assert found - emulated == pmu
    assert emulated == {0x10, 0x174, 0x175, 0x176, 0xC000_0100, 0xC000_0101, 0xC000_0102}
    assert rdpmc_passes("passthrough", met)
    assert not rdpmc_passes("emulated", met)
    assert not rdpmc_passes("passthrough", Met(host=HOST))
    everything = passed_msrs("passthrough", Met(guest=GUEST, host=HOST, all_passthrough=True))
    assert {index for index, _, _ in everything} - found == {*range(0x186, 0x18A), 0x38D}


def test_as_merged_a_guest_needs_every_counter_of_the_host_for_what_is_shared():
    met = Met(guest=GUEST, host=HOST)
    whole = attrs.evolve(GUEST, gp=8, fixed=4)
    rest = {index for index, _, _ in passed_msrs("emulated", met)}

    def passes(guest: Shape) -> set[int]:
        return {index for index, _, _ in passed_msrs("mediated", Met(guest=guest, host=HOST))} - rest

    assert passes(GUEST) == {*range(0xC1, 0xC5), *range(0x4C1, 0x4C5), *range(0x309, 0x30C)}
    counters = {*range(0xC1, 0xC9), *range(0x4C1, 0x4C9), *range(0x309, 0x30D)}
    assert passes(whole) == counters | {0x38E, 0x38F, 0x390}
    assert passes(attrs.evolve(whole, perf_capabilities=0)) & {*range(0x4C1, 0x4C9)} == set()
    version_1 = attrs.evolve(whole, version=1, fixed=0)
    assert passes(version_1) == {*range(0xC1, 0xC9), *range(0x4C1, 0x4C9)}
    assert rdpmc_passes("mediated", Met(guest=whole, host=HOST))
    for other in (GUEST, version_1, Shape(), attrs.evolve(whole, gp_width=40)):
        assert not rdpmc_passes("mediated", Met(guest=other, host=HOST))
    rule = rule_of("mediated", by_name("IA32_PERF_GLOBAL_CTRL"), True)
    words = rule_words(rule, met.names())
    assert words == f"KVM passes it if {rule}: 2 > 1 and 4 == 8 and 3 == 4"


def test_rules_in_words():
    names = Met(guest=GUEST, host=HOST).names() | {"n": 5}
    assert rule_words(rule_of("passthrough", by_name("IA32_PMC5"), False), names) == (
        "KVM passes it if n < guest.gp: 5 < 4"
    )
    assert rule_words(rule_of("emulated", by_name("IA32_PMC5"), True), names) == "KVM never passes it"
    assert rule_words(rule_of("emulated", by_name("IA32_FS_BASE"), True), names) == "KVM always passes it"
    assert rule_words(rule_of("emulated", 0x1234, True), names) == "KVM never passes it"
    tsc = by_name("IA32_TSC")
    for vpmu in VPMUS:
        assert [rule_of(vpmu, tsc, writes) for writes in (False, True)] == ["true", "false"]
    assert rule_for(RDPMC_PASSED, "emulated") == ("false", "false")


def test_a_register_that_lives_in_the_vmcs_names_a_field():
    fields = {row.lives.vmcs for row in MSRS} - {""}
    assert {vmcs_field(name).name for name in fields} == fields
    assert len(fields) == sum(row.lives.vmcs != "" for row in MSRS)
