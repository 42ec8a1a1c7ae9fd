"""The MSR bitmap of a run is what the column `passed` of isa/msrs.toml says, bit by bit."""

from __future__ import annotations

from functools import cache

import attrs
import pytest

from tests.linux.guests import system
from tests.linux.kvm.test_divergences import rdmsr, wrmsr
from vpmu_emu.linux.kvm.vmx.vmcs import vmcs_read
from vpmu_emu.system import host_model
from vpmu_emu.tables.modes import MODES
from vpmu_emu.tables.msrs import Shape, row_of, rules
from vpmu_emu.tables.passed import Met, passed_msrs, rdpmc_passes
from vpmu_emu.tables.vmcs import control_bit

pytestmark = pytest.mark.uncompiled

KVM_MODES = [mode for mode in MODES.values() if mode.hypervisor]
X2APIC_ON = wrmsr(0x1B, 0xFEE0_0D00)
LBR_TAKEN = rdmsr(0x1C9) * 2
# options, what the guest has of them, what it does: APIC mode, branch records
SHAPES = {
    "as the host": ({}, Shape(version=2, gp=8, fixed=3, perf_capabilities=0x2000)),
    "version 1": ({"guest": {"version": 1}}, Shape(version=1, gp=8, perf_capabilities=0x2000)),
    "none": ({"guest": {"version": 0}}, Shape()),
    "4 + 2": ({"guest": {"gp": 4, "fixed": 2}}, Shape(version=2, gp=4, fixed=2, perf_capabilities=0x2000)),
    "1 + 0": ({"guest": {"gp": 1, "fixed": 0}}, Shape(version=2, gp=1, perf_capabilities=0x2000)),
    "no full width": ({"guest": {"perf_caps": 0}}, Shape(version=2, gp=8, fixed=3)),
    "4 on skx": ({"cpu": "skx"}, Shape(version=2, gp=4, fixed=3, perf_capabilities=0x2000)),
    "every counter": (
        {"kvm": {"fixed_cap": 4}}, Shape(version=2, gp=8, fixed=4, perf_capabilities=0x2000)
    ),
    "all": ({"all_passthrough": True}, Shape(version=2, gp=8, fixed=3, perf_capabilities=0x2000)),
    "without APICv": ({"apicv": False}, Shape(version=2, gp=8, fixed=3, perf_capabilities=0x2000)),
    "records": (
        {"cpu": "icx", "guest": {"perf_caps": 0x2005}},
        Shape(version=2, gp=8, fixed=3, perf_capabilities=0x2005),
    ),
}


def passing(machine) -> set[tuple[int, bool]]:
    """(MSR, whether it is a write) of every access that the guest's bitmap lets pass."""
    at = int(machine.S.vcpus[0].msr_bitmap)
    page = bytes(machine.M[at : at + 4096])
    found = set()
    for part, (first, writes) in enumerate(((0, 0), (0xC000_0000, 0), (0, 1), (0xC000_0000, 1))):
        quarter = page[part * 0x400 : (part + 1) * 0x400]
        found |= {(first + n, bool(writes)) for n in range(0x2000) if not quarter[n // 8] >> n % 8 & 1}
    return found


@cache
def ran(mode: str, name: str, body: str):
    options, shape = SHAPES[name]
    if mode == "none":
        options = {key: value for key, value in options.items() if key != "guest"}
    if name == "records" and MODES[mode].owns_pmu:  # LBR_FMT is not offered
        options, shape = {"cpu": "icx"}, attrs.evolve(shape, perf_capabilities=0x2000)
    if name == "every counter" and mode != "mediated":
        shape = attrs.evolve(shape, fixed=3)
    if mode != "passthrough":
        options = {key: value for key, value in options.items() if key != "all_passthrough"}
    machine = system(body + "EXIT 0\n", mode, **options)
    assert machine.result(machine.run()).to_json()["exit_code"] == 0
    return machine, options, shape if MODES[mode].enable_pmu else Shape()


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("mode", [mode.name for mode in KVM_MODES])
@pytest.mark.parametrize("x2apic", [False, True])
def test_the_bitmap_and_the_control_of_a_run_are_the_tables(mode, name, x2apic):
    records = name == "records" and mode == "emulated"
    machine, options, shape = ran(mode, name, X2APIC_ON * x2apic + LBR_TAKEN * records)
    vpmu = MODES[mode].vpmu
    met = Met(
        guest=shape,
        host=host_model(options.get("cpu", "spr")).shape(),
        all_passthrough=bool(options.get("all_passthrough")),
        x2apicv=x2apic and options.get("apicv", True),
        lbr_active=records,
    )
    wanted = {
        (index, writes)
        for index, *both in passed_msrs(vpmu, met)
        for writes, passes in zip((False, True), both, strict=True)
        if passes
    }
    assert passing(machine) ^ wanted == set()
    control = vmcs_read(machine.M, machine.S.vcpus[0], "CPU_BASED_VM_EXEC_CONTROL")
    exits = bool(control >> control_bit("CPU_BASED_RDPMC_EXITING") & 1)
    assert exits != rdpmc_passes(vpmu, met)


def test_a_guest_never_passes_a_counter_that_it_lacks():
    """Whatever the formulas say: what passes exists for the guest, or is no register of the PMU."""
    for mode in KVM_MODES:
        for name in SHAPES:
            machine, _, shape = ran(mode.name, name, "")
            kvm = rules("kvm", shape)
            for first in (0xC1, 0x309, 0x186):
                row, _ = row_of(first)
                have = kvm.exists_count[row.number]
                found = {index for index, _ in passing(machine) if first <= index < first + 8}
                assert all(index - first < have for index in found), (mode.name, name, row.name)
