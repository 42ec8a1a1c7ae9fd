"""The MSR table is total and consistent; silicon and KVM differ as the manual and the kernel do."""

from __future__ import annotations

import subprocess
from collections import Counter

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpmu_emu.errors import ConfigError, VpmuError
from vpmu_emu.tables.cpus import cpu
from vpmu_emu.tables.expressions import MASK64, evaluate
from vpmu_emu.tables.generate import msr_inc
from vpmu_emu.tables.msrs import (
    ACCESS,
    DROPPED_WHEN_ABSENT,
    MSRS,
    NAMES,
    SLOTS,
    Shape,
    by_name,
    decode_value,
    msr_name,
    row_of,
    rules,
    slot_of,
    value_words,
)
from vpmu_emu.tables.names import UnknownNameError

pytestmark = pytest.mark.uncompiled

# Everything a row can talk about: each documented bit is writable here.
FULL = Shape(
    version=5, gp=8, fixed=4, perf_capabilities=0xF400, pdcm=True, ds=True, rtm=True, intel_pt=True,
    metrics_level2=True, maxphyaddr=52,
)  # fmt: skip
SPR = cpu("spr").shape()
GUEST = Shape(version=2, gp=8, fixed=3, perf_capabilities=0x2000, pdcm=True)


def rule(side, shape, name):
    row, n = row_of(by_name(name))
    table = rules(side, shape)
    return {
        "exists": n < table.exists_count[row.number],
        "reserved": table.reserved[row.number],
        "access": ACCESS[table.access[row.number]],
        "reset": table.reset[row.number],
    }


def test_every_index_belongs_to_one_register():
    indices = [row.index + n * row.stride for row in MSRS for n in range(row.count)]
    assert [i for i, times in Counter(indices).items() if times > 1] == []
    assert len(indices) == SLOTS
    assert sorted(slot_of(i) for i in indices) == list(range(SLOTS))


def test_rows_know_their_place():
    for number, row in enumerate(MSRS):
        assert row.number == number
        for n in range(row.count):
            assert row_of(row.index + n * row.stride) == (row, n)
    assert row_of(0xC0) is None
    assert row_of(0xC9) is None
    assert row_of(0) is None


@pytest.mark.parametrize("row", MSRS, ids=[row.name for row in MSRS])
def test_fields_do_not_overlap_and_are_named_once(row):
    covered = row.ignored
    for field in row.fields:
        assert field.high < 64
        assert covered & field.mask == 0, field.name
        covered |= field.mask
        assert len(field.values) <= 1 << field.high - field.low + 1
    assert len({field.name for field in row.fields}) == len(row.fields)


def documented(row):
    bits = row.ignored
    for field in row.fields:
        bits |= field.mask
    return bits


WRITABLE = [row for row in MSRS if row.hw.access in ("rw", "wo")]


@pytest.mark.parametrize("row", WRITABLE, ids=[row.name for row in WRITABLE])
def test_silicon_takes_every_bit_that_means_something_and_refuses_the_others(row):
    reserved = evaluate(row.hw.reserved, FULL.names())
    assert documented(row) | reserved == MASK64, hex(~(documented(row) | reserved) & MASK64)
    # ESR has bits to read, and only 0 may be written; DEBUGCTL names the branch trace that is not there.
    refused = {"IA32_X2APIC_ESR": documented(row), "IA32_DEBUGCTL": 0x7C4}.get(row.name, 0)
    assert documented(row) & reserved == refused, hex(documented(row) & reserved)


def test_kvm_reserves_what_differs_from_silicon():
    differ = {
        row.name
        for row in MSRS
        if evaluate(row.hw.reserved, FULL.names()) != evaluate(row.kvm.reserved, FULL.names())
    }
    x2apic = {
        "IA32_X2APIC_" + name
        for name in (
            "TPR", "EOI", "SIVR", "ESR", "LVT_TIMER", "LVT_THERMAL", "LVT_PMI", "LVT_LINT",
            "LVT_ERROR", "DIV_CONF",
        )
    }  # fmt: skip
    assert differ - x2apic == {
        "IA32_PERFEVTSEL",  # ANY, IN_TXCP
        "IA32_FIXED_CTR",  # beyond the width
        "IA32_FIXED_CTR_CTRL",  # ANY
        "IA32_PERF_GLOBAL_CTRL",  # PERF_METRICS
        "IA32_PERF_GLOBAL_STATUS_RESET",
        "IA32_DEBUGCTL",
        "IA32_MISC_ENABLE",
    }
    assert x2apic <= differ


def test_names_are_unique_and_found_again():
    assert len(list(NAMES)) >= SLOTS
    for name, index in NAMES.items():
        assert by_name(name) == index == by_name(name.lower())
    for row in MSRS:
        for n in range(row.count):
            index = row.index + n * row.stride
            assert by_name(msr_name(index)) == index
    assert msr_name(0x1234) == "MSR_0x1234"


@pytest.mark.parametrize(
    ("name", "index"),
    [
        # SDM volume 4 and the kernel's msr-index.h and perf_event.h.
        ("IA32_PMC0", 0xC1), ("MSR_IA32_PERFCTR0", 0xC1), ("IA32_PMC7", 0xC8),
        ("IA32_A_PMC0", 0x4C1), ("MSR_IA32_PMC0", 0x4C1), ("IA32_PERFEVTSEL7", 0x18D),
        ("MSR_P6_EVNTSEL0", 0x186), ("MSR_CORE_PERF_FIXED_CTR3", 0x30C),
        ("IA32_FIXED_CTR_CTRL", 0x38D), ("MSR_CORE_PERF_GLOBAL_STATUS", 0x38E),
        ("MSR_CORE_PERF_GLOBAL_CTRL", 0x38F), ("MSR_CORE_PERF_GLOBAL_OVF_CTRL", 0x390),
        ("IA32_PERF_GLOBAL_OVF_CTRL", 0x390), ("IA32_PERF_GLOBAL_STATUS_SET", 0x391),
        ("IA32_PERF_GLOBAL_INUSE", 0x392), ("MSR_PERF_METRICS", 0x329),
        ("IA32_PERF_CAPABILITIES", 0x345), ("IA32_PEBS_ENABLE", 0x3F1),
        ("MSR_PEBS_DATA_CFG", 0x3F2), ("IA32_DS_AREA", 0x600), ("IA32_DEBUGCTL", 0x1D9),
        ("IA32_TSC_DEADLINE", 0x6E0), ("IA32_APIC_BASE", 0x1B), ("IA32_X2APIC_LVT_PMI", 0x834),
        ("IA32_X2APIC_EOI", 0x80B), ("IA32_X2APIC_ICR", 0x830), ("IA32_X2APIC_SELF_IPI", 0x83F),
        ("IA32_X2APIC_ISR7", 0x817), ("IA32_X2APIC_IRR7", 0x827), ("MSR_EFER", 0xC0000080),
        ("MSR_KERNEL_GS_BASE", 0xC0000102), ("MSR_TSC_AUX", 0xC0000103),
        ("MSR_K7_PERFCTR3", 0xC0010007), ("MSR_LASTBRANCH_31_FROM_IP", 0x69F),
    ],
)  # fmt: skip
def test_addresses_are_the_manuals(name, index):
    assert by_name(name) == index


def test_a_wrong_name_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError) as caught:
        by_name("IA32_PERF_GLOBAL_CTL")
    assert "IA32_PERF_GLOBAL_CTRL" in str(caught.value)
    assert isinstance(caught.value, VpmuError)
    assert isinstance(caught.value, KeyError)


def test_what_silicon_of_version_5_accepts():
    assert rule("hw", SPR, "IA32_PERFEVTSEL0")["reserved"] == 0xFFFF_FFFB_0000_0000  # ADAPTIVE
    assert rule("hw", SPR, "IA32_FIXED_CTR3") == {
        "exists": True, "reserved": 0xFFFF_0000_0000_0000, "access": "rw", "reset": 0,
    }  # fmt: skip
    assert rule("hw", SPR, "IA32_PERF_GLOBAL_CTRL")["reserved"] == MASK64 ^ (1 << 48 | 0xF_0000_00FF)
    assert rule("hw", SPR, "IA32_PERF_GLOBAL_CTRL")["reset"] == 0xFF
    assert rule("hw", SPR, "IA32_PERF_GLOBAL_STATUS")["access"] == "ro"
    assert rule("hw", SPR, "IA32_PERF_GLOBAL_STATUS_SET")["exists"]
    assert rule("hw", SPR, "IA32_PERF_GLOBAL_INUSE")["exists"]
    assert rule("hw", SPR, "IA32_PERF_GLOBAL_STATUS_RESET")["reserved"] & 1 << 59 == 0


def test_what_kvm_of_version_2_accepts():
    assert rule("kvm", GUEST, "IA32_PERFEVTSEL0")["reserved"] == 0xFFFF_FFFF_0020_0000
    assert rule("kvm", GUEST, "IA32_FIXED_CTR0")["reserved"] == 0
    assert rule("kvm", GUEST, "IA32_FIXED_CTR_CTRL")["reserved"] == MASK64 ^ 0xBBB
    assert rule("kvm", GUEST, "IA32_PERF_GLOBAL_CTRL")["reserved"] == MASK64 ^ 0x7_0000_00FF
    assert rule("kvm", GUEST, "IA32_PERF_GLOBAL_STATUS_RESET")["reserved"] == (
        MASK64 ^ (0x7_0000_00FF | 3 << 62)
    )
    assert not rule("kvm", GUEST, "IA32_FIXED_CTR3")["exists"]
    assert not rule("kvm", GUEST, "IA32_PERF_GLOBAL_STATUS_SET")["exists"]
    assert not rule("kvm", GUEST, "IA32_PERF_GLOBAL_INUSE")["exists"]


def test_misc_enable_says_what_the_pmu_lacks():
    assert rule("hw", SPR, "IA32_MISC_ENABLE")["reset"] == 0x881  # no BTS
    assert rule("kvm", GUEST, "IA32_MISC_ENABLE")["reset"] == 0x1800
    assert rule("hw", cpu("skx").shape(), "IA32_MISC_ENABLE")["reset"] == 0x1881


def test_old_silicon_has_fewer_registers():
    v1 = attrs.evolve(SPR, version=1, gp=2, fixed=0, perf_capabilities=0)
    assert rule("hw", v1, "IA32_PMC1")["exists"]
    assert not rule("hw", v1, "IA32_PMC2")["exists"]
    assert not rule("hw", v1, "IA32_PERF_GLOBAL_CTRL")["exists"]
    assert not rule("hw", v1, "IA32_FIXED_CTR0")["exists"]
    assert not rule("hw", v1, "IA32_A_PMC0")["exists"]
    assert rule("hw", v1, "IA32_PERFEVTSEL0")["reserved"] & 1 << 21
    v3 = attrs.evolve(SPR, version=3)
    assert not rule("hw", v3, "IA32_PERF_GLOBAL_INUSE")["exists"]
    assert rule("hw", v3, "IA32_PERF_GLOBAL_STATUS_RESET")["reserved"] & 1 << 59


def test_only_kvm_drops_writes_to_what_is_not_there():
    assert sorted(DROPPED_WHEN_ABSENT) == [0xC1, 0xC2, 0x186, 0x187]
    for index in range(0xC0010000, 0xC0010008):
        name = msr_name(index)
        assert rule("kvm", GUEST, name)["access"] == "drop"
        assert rule("kvm", GUEST, name)["exists"]
        assert not rule("hw", SPR, name)["exists"]


def test_without_the_features_their_registers_are_gone():
    bare = Shape(x2apic=False, tsc_deadline=False, ibpb=False)
    for side in ("hw", "kvm"):
        for name in (
            "IA32_PMC0", "IA32_PERFEVTSEL0", "IA32_PERF_CAPABILITIES", "IA32_X2APIC_EOI",
            "IA32_X2APIC_ISR3", "IA32_X2APIC_LVT_LINT1", "IA32_TSC_DEADLINE", "IA32_PRED_CMD",
        ):  # fmt: skip
            assert not rule(side, bare, name)["exists"], (side, name)
    for name in ("IA32_PEBS_ENABLE", "IA32_DS_AREA", "MSR_PEBS_DATA_CFG", "MSR_PERF_METRICS"):
        assert not rule("hw", cpu("skx").shape(), name)["exists"]
        assert rule("hw", FULL, name)["exists"]


def test_selector_values_read_as_words():
    selector = by_name("IA32_PERFEVTSEL0")
    assert value_words(selector, 0x4300C0) == "INST_RETIRED.ANY_P usr os en"
    assert value_words(selector, 0x01D611C4) == (
        "BR_INST_RETIRED.COND os edge int en inv cmask=0x1"
    )
    words = "event=0xff umask=0x1 usr en, not counted by this model"
    assert value_words(selector, 0x4101FF) == words
    assert value_words(selector, 0x410000) == "event=0x0 usr en"
    assert ("event", 0xC0, "INST_RETIRED.ANY_P") in decode_value(selector, 0x4300C0)
    assert decode_value(selector, 1 << 63)[-1][:2] == ("reserved", 1 << 63)


def test_other_values_read_as_words():
    assert value_words(by_name("IA32_PERF_GLOBAL_CTRL"), 0x1_0000_0005) == "pmc0 pmc2 fixed0"
    assert value_words(by_name("IA32_FIXED_CTR_CTRL"), 0xB0) == "fixed1_os fixed1_usr fixed1_pmi"
    assert value_words(by_name("IA32_X2APIC_LVT_PMI"), 0x10400) == "nmi masked"
    assert value_words(by_name("IA32_X2APIC_LVT_TIMER"), 0x400EC) == "vector=0xec tsc-deadline"
    assert value_words(by_name("IA32_PERF_GLOBAL_STATUS"), 0) == "0"
    assert value_words(0x9999, 0x12) == "0x12"


@given(st.sampled_from(MSRS), st.integers(0, MASK64))
def test_decoding_loses_no_bit(row, value):
    again = 0
    for name, bits, _ in decode_value(row.index, value):
        if name == "reserved":
            again |= bits
        else:
            again |= bits << next(f.low for f in row.fields if f.name == name)
    assert again == value & ~row.ignored


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("~0", MASK64), ("1 << 3 | 2", 10), ("gp if version > 1 else 0", 8), ("not gp", 0),
        ("version > 1 and gp", 8), ("0 or gp", 8), ("1 < version < 3", 0), ("-1", MASK64),
        ("gp - fixed * 2 + 1 ^ 3", 2), ("true", 1), ("false", 0), ("gp >> 1 & 6", 4),
    ],
)  # fmt: skip
def test_formulas(text, value):
    assert evaluate(text, {"gp": 8, "fixed": 4, "version": 5}) == value


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("pg", "pg"), ("gp +", "not a formula"), ("gp()", "not allowed"),
        ("gp.real", "unknown name"), ("gp().real", "not allowed"),
        ("'gp'", "not allowed"), ("1 << 64", "shift"), ("gp ** 2", "not allowed"),
        ("[gp]", "allowed"),
        ("1.5", "not allowed"), ("gp / 2", "not allowed"), ("1 in gp", "not allowed"),
    ],
)  # fmt: skip
def test_what_is_no_formula_is_refused(text, word):
    with pytest.raises(ConfigError, match=word):
        evaluate(text, {"gp": 8})


def test_every_formula_is_one():
    for shape in (FULL, SPR, GUEST, Shape()):
        for side in ("hw", "kvm"):
            table = rules(side, shape)
            assert all(0 <= n <= row.count for n, row in zip(table.exists_count, MSRS))


def test_msr_inc_is_up_to_date(root):
    assert (root / "guests" / "include" / "msr.inc").read_text() == msr_inc()


def test_msr_inc_assembles_with_gnu_as(root, require_oracle, tmp_path):
    source = tmp_path / "t.s"
    source.write_text(
        '.intel_syntax noprefix\n.include "msr.inc"\n'
        ".quad IA32_PERF_GLOBAL_CTRL, MSR_IA32_PMC7, EVT_INST_RETIRED_ANY_P, GLOBAL_FIXED2\n"
    )
    out = tmp_path / "t.o"
    command = [require_oracle("as"), "--64", "-I", str(root / "guests/include"), "-o", str(out)]
    subprocess.run([*command, str(source)], check=True)
    words = (0x38F, 0x4C8, 0xC0, 1 << 34)
    assert b"".join(w.to_bytes(8, "little") for w in words) in out.read_bytes()
