"""CPU models are complete and alike, their costs ordered, and their CPUID says what they are."""

from __future__ import annotations

import math
import tomllib

import attrs
import pytest

from vpmu_emu.data import isa_dir
from vpmu_emu.errors import ConfigError
from vpmu_emu.machine.state import N_L1, N_L2, N_LLC, N_PREDICTOR
from vpmu_emu.tables.cpus import (
    COST_NAMES,
    CPU_NAMES,
    LATENCIES,
    PARTS,
    SIZES,
    at_level,
    changed,
    cpu,
    cpuid_leaves,
    cpuid_pmu,
    describe,
    settable,
)
from vpmu_emu.tables.figures import FIGURES
from vpmu_emu.tables.instructions import COSTS
from vpmu_emu.tables.msrs import Shape

pytestmark = pytest.mark.uncompiled

MODELS = [cpu(name) for name in CPU_NAMES]


@pytest.fixture(params=MODELS, ids=CPU_NAMES)
def model(request):
    return request.param


def test_every_model_has_the_same_rows(model):
    table = tomllib.loads((isa_dir() / "cpus" / f"{model.name}.toml").read_text())
    whole = "base" not in table
    for own, names in ((table.get("cycles", {}), COST_NAMES), (table.get("latency", {}), LATENCIES)):
        assert set(own) == set(names) if whole else set(own) <= set(names)
    assert not set(table) & {"cost", "costs"}  # work is the kernel's: isa/costs.toml
    assert [cost.name for cost in model.costs] == list(COST_NAMES) == sorted(COST_NAMES)


def test_a_model_differs_from_its_base_where_it_says_so():
    spr, icx, skx = cpu("spr"), cpu("icx"), cpu("skx")
    assert (icx.model, icx.family, icx.version, icx.fixed) == (0x6A, spr.family, 5, 4)
    assert (skx.version, skx.gp, skx.fixed, skx.anythread_deprecated) == (4, 4, 3, False)
    # the format of branch records: architectural ones came with Sapphire Rapids
    assert [m.perf_capabilities & 0x3F for m in (spr, icx, skx)] == [0x3F, 5, 5]
    new = {"save_perf_global_ctrl", "arch_lbr", "metrics_level2"}
    assert spr.features - icx.features == new
    assert spr.features - skx.features == new | {"ds"}  # no PEBS
    assert skx.latency_of("div") > icx.latency_of("div") > spr.latency_of("div")
    assert skx.latency_of("alu") == spr.latency_of("alu")
    assert skx.cost("vm_exit").cycles[1] > spr.cost("vm_exit").cycles[1]
    assert skx.cost("rdpmc") == spr.cost("rdpmc")


def test_costs_are_ordered_and_sourced(model):
    for cost, first in zip(model.costs, cpu("spr").costs, strict=True):
        assert cost.part == first.part, cost.name
        assert cost.part in (*PARTS, ""), cost.name
        assert (cost.part == "") == (cost.name in ("wrmsr", "rdmsr", "rdpmc")), cost.name
        low, typical, high = cost.cycles
        assert 0 < low <= typical <= high, cost.name
        assert 0 <= cost.branches <= cost.instructions, cost.name
        # Nothing retires more than the issue width allows.
        assert cost.instructions <= 6 * typical, cost.name
        assert len(cost.source) > 10, cost.name


def test_every_instruction_class_has_a_latency(model):
    assert set(COSTS) <= set(LATENCIES)
    slot = model.latency_of("slot")
    assert 16 % slot == 0
    for name in COSTS:
        assert model.latency_of(name) >= slot, name


def test_the_cpuid_round_trip_is_what_was_measured():
    """Linux commit b0b6a8d3be16: 3000 cycles of the TSC with elided WRMSRs; 8 + 3 counters, idle."""
    emr = cpu("emr")

    def round_trip(level):
        path = (
            "vm_exit", "vm_entry", "vcpu_run", "vcpu_enter_guest", "vmx_handle_exit", "kvm_emulate_cpuid",
        )  # fmt: skip
        base = sum(emr.cost(name).cycles[level] for name in path)
        wrmsr, rdmsr, rdpmc = (emr.cost(name).cycles[level] for name in ("wrmsr", "rdmsr", "rdpmc"))
        # Load: GLOBAL_CTRL, 8 selectors, FIXED_CTR_CTRL, LVTPC; put: LVTPC; 11 RDPMC and a RDMSR each.
        loops = ("perf_load_guest_context", "kvm_mediated_pmu_load", "kvm_mediated_pmu_put")
        base += sum(emr.cost(name).cycles[level] for name in (*loops, "perf_put_guest_context"))
        return (base + 12 * wrmsr + 22 * rdpmc + 2 * rdmsr) * emr.tsc_khz / emr.core_khz

    low, typical, high = map(round_trip, range(3))
    assert low < FIGURES["cpuid_exit_emr_elided"].value[0] < high
    assert typical == pytest.approx(FIGURES["cpuid_exit_emr_elided"].value[0], rel=0.1)


# family, model and stepping as CPUID.1:EAX shows them, then the PMU: version, counters, fixed counters
REAL = {
    "skx": (0x50657, 4, 4, 3), "icx": (0x606A6, 5, 8, 4), "spr": (0x806F8, 5, 8, 4),
    "emr": (0xC06F2, 5, 8, 4), "generic": (0x00621, 5, 8, 4),
}  # fmt: skip


def test_the_models_are_the_processors(model):
    signature, version, gp, fixed = REAL[model.name]
    leaves = {leaf: regs for leaf, *regs in cpuid_leaves(model)}
    assert leaves[1][0] == signature
    assert (model.version, model.gp, model.fixed) == (version, gp, fixed)
    assert (model.gp_width, model.fixed_width) == (48, 48)


def test_powers_of_two_where_tables_are_indexed_by_masks(model):
    for size in (model.predictor, model.l1_lines, model.l2_lines, model.llc_lines):
        assert size & size - 1 == 0


def test_caches_are_a_hierarchy(model):
    assert (model.predictor, model.l1_lines, model.llc_lines) == (N_PREDICTOR, N_L1, N_LLC)
    assert model.l1_lines < model.l2_lines <= N_L2 < model.llc_lines
    assert model.prefetch_l2 <= model.prefetch_llc
    load, l2, llc, memory = (model.latency_of(k) for k in ("load", "l2_hit", "llc_ref", "llc_miss"))
    assert load <= l2 < llc < memory


def test_no_clock_is_faster_than_the_core(model):
    """So a counter of any clock grows by at most one in a cycle (lockup_spin relies on it)."""
    assert model.crystal_khz <= model.tsc_khz <= model.core_khz <= model.turbo_khz
    assert model.base_khz == model.tsc_khz  # invariant TSC of these processors
    num, den = model.per_core_cycle(model.tsc_khz)
    assert num * model.core_khz == den * model.tsc_khz
    assert math.gcd(num, den) == 1
    leaves = {leaf: regs for leaf, *regs in cpuid_leaves(model)}
    assert leaves[0x16][:2] == [model.base_khz // 1000, model.turbo_khz // 1000]


def test_leaf_0a_of_the_models():
    leaves = {m.name: {row[0]: row[1:] for row in cpuid_leaves(m)} for m in MODELS}
    for name in ("spr", "emr", "icx", "generic"):
        assert leaves[name][0xA] == (0x0830_0805, 0, 0xF, 0x8604)
    assert leaves["skx"][0xA] == (0x0730_0404, 0, 0, 0x0603)


@pytest.mark.parametrize(
    ("version", "leaf"),
    [
        (0, (0, 0, 0, 0)),
        # The fixed counters came with version 2, AnyThread with 3; their bitmap and EDX[15] with 5.
        (1, (0x0830_0801, 0, 0, 0)),
        (2, (0x0830_0802, 0, 0, 0x604)),
        (3, (0x0830_0803, 0, 0, 0x604)),
        (4, (0x0830_0804, 0, 0, 0x604)),
        (5, (0x0830_0805, 0, 0xF, 0x8604)),
    ],
)
def test_leaf_0a_by_version(version, leaf):
    model = attrs.evolve(cpu("spr"), version=version)
    assert {row[0]: row[1:] for row in cpuid_leaves(model)}[0xA] == leaf


def test_leaf_0a_follows_the_shape():
    shape = Shape(version=1, gp=2, anythread_deprecated=False)
    assert cpuid_pmu(shape) == (0x0830_0201, 0, 0, 0)
    eax, ebx, ecx, edx = cpuid_pmu(
        Shape(version=2, gp=4, gp_width=40, fixed=3, fixed_width=39, anythread_deprecated=False),
        events_length=7,
        events_absent=0x20,
    )
    assert (eax, ebx, ecx, edx) == (0x0728_0402, 0x20, 0, 3 | 39 << 5)


def test_cpuid_says_who_it_is(model):
    leaves = {leaf: regs for leaf, *regs in cpuid_leaves(model)}
    assert list(leaves) == sorted(leaves)
    eax, ebx, ecx, edx = leaves[0]
    assert b"".join(r.to_bytes(4, "little") for r in (ebx, edx, ecx)) == b"GenuineIntel"
    assert eax == max(leaf for leaf in leaves if leaf < 0x8000_0000)
    signature = leaves[1][0]
    assert (signature >> 4 & 15) | (signature >> 12 & 0xF0) == model.model
    assert signature >> 8 & 15 == model.family
    # The bits that kvm-unit-tests and the kernel ask for before they touch the PMU.
    assert leaves[1][2] >> 15 & 1 == ("pdcm" in model.features)
    assert leaves[1][2] >> 21 & 1 == ("x2apic" in model.features)
    assert leaves[1][2] >> 24 & 1 == ("tsc_deadline" in model.features)
    assert leaves[7][3] >> 26 & 1 == ("ibpb" in model.features)
    assert leaves[1][3] >> 19 & 1 == 1  # CLFLUSH
    pmu = cpuid_pmu(model.shape(), events_length=model.arch_events_length)
    assert leaves[0xA] == list(pmu)
    ratio, crystal = leaves[0x15][1] / leaves[0x15][0], leaves[0x15][2]
    assert ratio * crystal == model.tsc_khz * 1000
    brand = b"".join(r.to_bytes(4, "little") for n in (2, 3, 4) for r in leaves[0x8000_0000 + n])
    assert brand.rstrip(b"\0").decode() == model.brand
    assert leaves[0x8000_0000][0] == max(leaves)
    assert leaves[0x8000_0008][0] & 0xFF == model.maxphyaddr


def test_the_shape_is_the_models(model):
    shape = model.shape()
    for field in attrs.fields(Shape):
        value = getattr(shape, field.name)
        if field.name == "anythread_deprecated":
            assert value == (model.anythread_deprecated and model.version >= 5)
        elif field.name == "rdtscp":
            assert value  # every model has it
        elif hasattr(model, field.name):
            assert value == getattr(model, field.name), field.name
        else:
            assert value is (field.name in model.features), field.name


def test_wrong_names_are_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean spr"):
        cpu("sprr")
    with pytest.raises(ConfigError, match="did you mean vm_exit"):
        cpu("spr").cost("vmexit")


# --- what a run may set -----------------------------------------------------------------------------------


def test_every_cost_latency_and_size_can_be_set(model):
    assert set(settable()) == {
        *(f"cost.{name}" for name in COST_NAMES), *(f"model.{name}" for name in (*LATENCIES, *SIZES)),
    }  # fmt: skip
    for key, allowed in settable().items():
        kind, name = key.split(".")
        if kind == "cost":
            found = changed(model, {key: 77})
            assert found.cost(name).cycles == (77, 77, 77)
            assert [c for c in found.costs if c.name != name] == [c for c in model.costs if c.name != name]
            assert attrs.evolve(found, costs=model.costs) == model
        elif name in LATENCIES:
            now = model.latency_of(name)
            value = now if name == "slot" else now + 1
            if name in ("l2_hit", "llc_ref", "msr"):
                assert changed(model, {key: value, "model.wrmsr": 99_999}).latency_of(name) == value
            else:
                found = changed(model, {key: value})
                assert found.latency_of(name) == value
                assert sum(a != b for a, b in zip(found.latency, model.latency, strict=True)) <= 1
        else:
            assert getattr(model, name) in allowed
            for value in allowed if name[:3] in ("l2_", "llc") else ():
                assert getattr(changed(model, {key: value}), name) == value
    assert changed(model, {"pmu.gp": 1}) == model == changed(model, {})


def test_what_is_told_of_a_model_is_what_can_be_set(model):
    told = describe(model)
    for name, ends in zip(LATENCIES, model.latencies, strict=True):
        row = told["latencies"][name]
        assert (row["low"], row["typical"], row["high"]) == ends
        assert row["source"]
    assert {f"cost.{k}" for k in told["costs"]} | {
        f"model.{k}" for part in ("latencies", "model") for k in told[part]
    } == set(settable())
    for cost in model.costs:
        row = told["costs"][cost.name]
        assert (row["low"], row["typical"], row["high"]) == cost.cycles
        assert row["source"]


def test_a_level_is_a_column_of_the_latencies(model):
    for level in range(3):
        assert at_level(model, level).latency == tuple(three[level] for three in model.latencies)
        assert at_level(model, level).costs == model.costs
    assert at_level(model, 1) == model
