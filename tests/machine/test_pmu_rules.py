"""Which PMU register exists and which bit faults: the manual's rules and KVM's, each said once more here.

The machine takes its rules from isa/msrs.toml; silicon is compared with the independent reference PMU,
KVM with the rules of arch/x86/kvm as `kvm_faults` says them. Every instance of every register, every bit.
"""

from __future__ import annotations

from functools import cache

import attrs
import numpy as np
import pytest

from tests.reference.pmu import Gp, Pmu
from tests.reference.pmu import Shape as ReferenceShape
from vpmu_emu.asm import assemble
from vpmu_emu.system import System, host_model
from vpmu_emu.tables.msrs import ACCESS, MSRS, Shape, rules

pytestmark = [pytest.mark.uncompiled, pytest.mark.inner]

ALL = (1 << 64) - 1
VALUES = (0, ALL, *(1 << bit for bit in range(64)))
EMPTY = assemble("hlt", "<empty>")

COUNTERS = [*range(0xC1, 0xC9), *range(0x4C1, 0x4C9), *range(0x309, 0x30D)]
CONTROL = [*range(0x186, 0x18E), 0x38D, 0x38E, 0x38F, 0x390, 0x391, 0x392, 0x345, 0x1D9]
K7 = [*range(0xC0010000, 0xC0010008)]


# --- silicon --------------------------------------------------------------------------------------------
CPUS = {
    **{f"v{version}": {"pmu.version": version} for version in range(6)},
    "v2, 4 + 3 counters": {"pmu.version": 2, "pmu.gp": 4, "pmu.fixed": 3},
    "v5, 1 + 0 counters": {"pmu.gp": 1, "pmu.fixed": 0},
    "v3, 40 bits": {"pmu.version": 3, "pmu.width": 40},
    "v4, no full-width writes": {"pmu.version": 4, "pmu.perf_caps": 0},
    "v4, freeze in SMM": {"pmu.version": 4, "pmu.perf_caps": 0x3000},
}


@cache
def silicon(name):
    return System(EMPTY, ram=2, settings=CPUS[name])


def reference(name) -> Pmu:
    model = host_model("spr", CPUS[name])
    return Pmu(
        ReferenceShape(
            version=model.version,
            gp=model.gp if model.version else 0,
            fixed=model.fixed if model.version > 1 else 0,
            width=model.gp_width,
            fixed_width=model.fixed_width,
            perf_caps=model.perf_capabilities,
        )
    )


def faults(call, *arguments) -> bool:
    try:
        call(*arguments)
    except Gp:
        return True
    return False


def word(text: str) -> np.uint64:
    return np.uint64(text)


@pytest.mark.parametrize("name", CPUS)
@pytest.mark.parametrize("index", COUNTERS + CONTROL + K7, ids=hex)
def test_silicon_faults_as_the_manual_says(name, index):
    from vpmu_emu.machine.msr import check_read, check_write

    core, pmu = silicon(name).core, reference(name)
    found = [int(check_write(core, word(index), word(value))) < 0 for value in VALUES]
    wanted = [faults(pmu.wrmsr, index, value) for value in VALUES]
    assert [hex(v) for v, f, w in zip(VALUES, found, wanted) if f != w] == []
    assert (int(check_read(core, word(index))) < 0) == faults(pmu.rdmsr, index)


@pytest.mark.parametrize("name", CPUS)
def test_reset_values(name):
    """RESET enables the general-purpose counters; all else is 0 (SDM 3A table 10-1)."""
    from vpmu_emu.machine.msr import check_read, msr_value

    core, pmu = silicon(name).core, reference(name)
    for index in COUNTERS + CONTROL:
        rn = int(check_read(core, word(index)))
        if rn < 0:
            continue
        found = int(msr_value(core, rn, word(index)))
        assert found == pmu.rdmsr(index), hex(index)
        if index == 0x38F:
            assert found == (1 << pmu.shape.gp) - 1


def test_rules_of_features_that_no_model_has():
    """TSX, adaptive PEBS, PERF_METRICS and Intel PT: bits that exist only with them."""
    plain = Shape(version=5, gp=8, fixed=4, perf_capabilities=0x2000, pdcm=True)

    def taken(name: str, **features) -> int:
        """Bits that are written freely with these features and fault without them."""
        row = next(row for row in MSRS if row.name == name)
        more = rules("hw", attrs.evolve(plain, **features)).reserved[row.number]
        less = rules("hw", plain).reserved[row.number]
        assert more & ~less == 0
        return less & ~more

    assert taken("IA32_PERFEVTSEL", rtm=True) == 3 << 32
    assert taken("IA32_PERFEVTSEL", perf_capabilities=0x6000) == 1 << 34
    adaptive = 1 << 32 | 1 << 36 | 1 << 40 | 1 << 44
    assert taken("IA32_FIXED_CTR_CTRL", perf_capabilities=0x6000) == adaptive
    assert taken("IA32_PERF_GLOBAL_CTRL", perf_capabilities=0xA000) == 1 << 48
    assert taken("IA32_PERF_GLOBAL_STATUS_RESET", perf_capabilities=0xA000) == 1 << 48
    assert taken("IA32_PERF_GLOBAL_STATUS_RESET", intel_pt=True) == 1 << 55
    assert taken("IA32_PERF_GLOBAL_STATUS_SET", perf_capabilities=0xA000) == 1 << 48
    assert taken("IA32_DEBUGCTL", rtm=True) == 1 << 15


# --- KVM ------------------------------------------------------------------------------------------------
@attrs.frozen
class Guest:
    """What a guest effectively has, from what the VMM asked for."""

    version: int = 2
    gp: int = 8
    fixed: int = 3
    width: int = 48
    fw_writes: bool = True


GUESTS = {
    "default": ({}, Guest()),
    "v0": ({"guest": {"version": 0}}, Guest(0, 0, 0, 48, False)),
    "v1": ({"guest": {"version": 1}}, Guest(1, 8, 0)),
    "v5 asked": ({"guest": {"version": 5, "fixed": 4}}, Guest()),
    "cap of 4": ({"kvm": {"fixed_cap": 4}}, Guest(2, 8, 3)),
    "4 + 2 counters": ({"guest": {"gp": 4, "fixed": 2}}, Guest(2, 4, 2)),
    "1 + 0 counters": ({"guest": {"gp": 1, "fixed": 0}}, Guest(2, 1, 0)),
    "8 on a host with 4": ({"guest": {"gp": 8, "fixed": 4}, "cpu": "skx"}, Guest(2, 4, 3)),
    "40 bits": ({"guest": {"width": 40}}, Guest(2, 8, 3, 40)),
    "no full-width writes": ({"guest": {"perf_caps": 0}}, Guest(2, 8, 3, 48, False)),
}
FAULT, DROP, DONE = "fault", "drop", "done"


def kvm(guest: Guest, index: int, value: int | None) -> str:
    """What a guest's RDMSR (value None) or WRMSR of a PMU register comes to if KVM handles it.

    intel_is_valid_msr, intel_pmu_set_msr, kvm_pmu_set_msr, kvm_set_msr_common, vmx_set_msr.
    """
    write, value = value is not None, value or 0

    def done_unless(reserved: int) -> str:
        return FAULT if write and value & reserved else DONE

    gp_bits = (1 << guest.gp) - 1
    fixed_bits = ((1 << guest.fixed) - 1) << 32
    if index in range(0xC1, 0xC1 + guest.gp):
        return DONE
    if index in range(0x186, 0x186 + guest.gp):
        return done_unless(ALL << 32 | 1 << 21)
    if index in (0xC1, 0xC2, 0x186, 0x187) or index in K7:
        return DROP
    if index in range(0x4C1, 0x4C1 + guest.gp) and guest.fw_writes:
        return done_unless(~((1 << guest.width) - 1))
    if guest.version > 1:
        if index in range(0x309, 0x309 + guest.fixed):
            return DONE
        if index == 0x38D:
            return done_unless(~sum(0xB << 4 * i for i in range(guest.fixed)))
        if index == 0x38E:
            return FAULT if write else DONE
        if index == 0x38F:
            return done_unless(~(gp_bits | fixed_bits))
        if index == 0x390:
            return done_unless(~(gp_bits | fixed_bits | 3 << 62))
    if index == 0x345:
        return DONE if not write and guest.version else FAULT
    if index == 0x1D9:
        return done_unless(~3)
    return FAULT


@pytest.mark.parametrize("mode", ["emulated", "passthrough", "mediated"])
@pytest.mark.parametrize("name", GUESTS)
def test_kvm_faults_as_its_code_says(mode, name):
    from tests.linux.kvm.test_pmu_msrs import kvm_rdmsr, kvm_wrmsr

    options, guest = GUESTS[name]
    if name == "cap of 4" and mode == "mediated":  # it alone has more with it
        guest = Guest(2, 8, 4)
    system = System(EMPTY, vpmu=mode, ram=2, **options)
    wrong = []
    for index in COUNTERS + CONTROL + K7:
        fault, _ = kvm_rdmsr(system, index)
        wanted = kvm(guest, index, None)
        if fault != (wanted == FAULT):
            wrong.append(f"RDMSR {index:#x}: {fault}, {wanted}")
        for value in VALUES:
            wanted = kvm(guest, index, value)
            if mode == "passthrough" and wanted == DONE and 0xC1 <= index < 0xC1 + guest.gp:
                wanted = FAULT  # it passes, and is not believed to have come to KVM (patch 18)
            if kvm_wrmsr(system, index, value) != (wanted == FAULT):
                wrong.append(f"WRMSR {index:#x} <- {value:#x}: {wanted}")
            if wanted == DROP and kvm_rdmsr(system, index) != (False, 0):
                wrong.append(f"{index:#x} <- {value:#x} is kept")
    assert wrong[:10] == []


@pytest.mark.parametrize("name", GUESTS)
@pytest.mark.parametrize("all_passthrough", [False, True])
def test_what_reaches_silicon_in_passthrough(name, all_passthrough):
    """Every bit of the MSR bitmap: the guest's own counters and GLOBAL_*, and nothing else of the PMU."""
    options, guest = GUESTS[name]
    everything = {"all_passthrough": all_passthrough}
    system = System(EMPTY, vpmu="passthrough", ram=2, **everything, **options)
    at = int(system.S.vcpus[0].msr_bitmap)
    page = bytes(system.M[at : at + 4096])
    passed = {0xC1 + i for i in range(guest.gp)}
    if guest.fw_writes:
        passed |= {0x4C1 + i for i in range(guest.gp)}
    if guest.version > 1:
        passed |= {0x309 + i for i in range(guest.fixed)} | {0x38E, 0x38F, 0x390}
    if all_passthrough and guest.version:
        passed |= {0x186 + i for i in range(guest.gp)} | ({0x38D} if guest.version > 1 else set())
    pmu = set(COUNTERS + CONTROL) | {0x329, 0x3F1, 0x3F2, 0x600, 0x1A6, 0x1A7}
    for base in (0, 2048):  # reads, writes
        found = {m for m in pmu if not page[base + m // 8] >> m % 8 & 1}
        assert found == passed
    emulated = System(EMPTY, vpmu="emulated", ram=2, **options)
    at = int(emulated.S.vcpus[0].msr_bitmap)
    page = bytes(emulated.M[at : at + 4096])
    assert all(page[base + m // 8] >> m % 8 & 1 for m in pmu for base in (0, 2048))


def test_the_two_columns_of_the_table_differ_only_where_the_kernel_does():
    """What the tests above say of KVM and of silicon, at the same shape, differs at these registers."""
    shape = Shape(version=2, gp=8, fixed=3, perf_capabilities=0x2000, pdcm=True)
    hw, kvm_rules = rules("hw", shape), rules("kvm", shape)
    differ = set()
    for row in MSRS:
        k = row.number
        if row.index not in (*COUNTERS, *CONTROL):
            continue
        same = (
            hw.exists_count[k] == kvm_rules.exists_count[k]
            and hw.reserved[k] == kvm_rules.reserved[k]
            and ACCESS[hw.access[k]] == ACCESS[kvm_rules.access[k]]
        )
        if not same:
            differ.add(row.name)
    # At version 2 silicon has no AnyThread either: its selectors fault on the same bits.
    assert differ == {"IA32_FIXED_CTR", "IA32_DEBUGCTL"}
