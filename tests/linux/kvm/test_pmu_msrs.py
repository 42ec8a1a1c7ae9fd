"""KVM's handlers against the `kvm` rules of the MSR table, and RDPMC's order of checks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.linux.guests import run, system
from vpmu_emu.linux.kvm import pmu_ops
from vpmu_emu.linux.kvm.cpuid import guest_shape
from vpmu_emu.linux.kvm.pmu import kvm_pmu_is_valid_msr, kvm_pmu_rdpmc_idx
from vpmu_emu.linux.kvm.vmx.exits import kvm_get_msr_common, kvm_set_msr_common
from vpmu_emu.linux.percpu import kvm_get_running_vcpu
from vpmu_emu.linux.printk import log_report
from vpmu_emu.machine.u64 import U64
from vpmu_emu.tables.cpus import cpu
from vpmu_emu.tables.modes import VPMUS
from vpmu_emu.tables.msrs import ACCESS, MSRS, rules

pytestmark = [pytest.mark.uncompiled, pytest.mark.inner]

PMU_ROWS = [
    row for row in MSRS
    if row.name in ("IA32_PMC", "IA32_A_PMC", "IA32_PERFEVTSEL", "IA32_FIXED_CTR", "MSR_PERF_METRICS",
                    "IA32_PERF_CAPABILITIES", "IA32_DS_AREA", "IA32_PEBS_ENABLE", "MSR_PEBS_DATA_CFG")
    or row.name.startswith(("IA32_FIXED_CTR_CTRL", "IA32_PERF_GLOBAL"))
]  # fmt: skip
SHAPES = [
    {}, {"gp": 4, "fixed": 2}, {"version": 1}, {"version": 0}, {"perf_caps": 0},
    {"gp": 1, "fixed": 0},
]  # fmt: skip
MODES = VPMUS
VALUES = st.one_of(
    st.sampled_from([0, 1, 3, 1 << 48, (1 << 64) - 1, 0x4300C0, 0xB, 4]),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 63).map(lambda n: 1 << n),
)


def kvm_wrmsr(machine, index, value) -> bool:
    """Whether a guest's WRMSR faults."""
    S, E = machine.S, machine.E
    with np.errstate(over="ignore"):
        which = kvm_pmu_is_valid_msr(S.vcpus[0].pmu, U64(index))
        if which >= 0:
            return bool(pmu_ops.set_msr(S, machine.M, E, S.vcpus[0], which, U64(value), 0))
        return bool(kvm_set_msr_common(S, machine.M, E, S.vcpus[0], U64(index), U64(value)))


def kvm_rdmsr(machine, index) -> tuple[bool, int]:
    """(faults, value) of a guest's RDMSR."""
    S, E = machine.S, machine.E
    with np.errstate(over="ignore"):
        which = kvm_pmu_is_valid_msr(S.vcpus[0].pmu, U64(index))
        if which >= 0:
            return False, int(pmu_ops.get_msr(S, E, S.vcpus[0], which))
        fault, value = kvm_get_msr_common(S, machine.M, E, S.vcpus[0], U64(index), 0)
        return bool(fault), int(value)


def predicted(table, row, n, value=None) -> str:
    """fault, drop or done, by the table; `value` for a write."""
    k = row.number
    if n >= table.exists_count[k]:
        return "drop" if n < row.kvm.drop_absent else "fault"
    access = ACCESS[table.access[k]]
    if access == "drop":
        return "drop"
    if value is None:
        return "fault" if access == "wo" else "done"
    return "fault" if access == "ro" or value & table.reserved[k] else "done"


@given(st.sampled_from(PMU_ROWS), st.integers(0, 7), VALUES, st.sampled_from(range(len(SHAPES))),
       st.sampled_from(sorted(MODES)))  # fmt: skip
def test_pmu_registers_fault_as_the_table_says(row, n, value, shape_index, mode):
    n %= row.count
    settings = SHAPES[shape_index]
    machine = system("EXIT 0\n", mode, guest=settings)
    table = rules("kvm", guest_shape(cpu("spr").shape(), settings))
    index = row.index + n * row.stride
    verdict = predicted(table, row, n)
    fault, before = kvm_rdmsr(machine, index)
    assert fault == (verdict == "fault"), (row.name, n, settings)
    if verdict == "drop":
        assert before == 0
    verdict = predicted(table, row, n, value)
    wrong = (row.name, n, hex(value), settings)
    assert kvm_wrmsr(machine, index, value) == (verdict == "fault"), wrong
    if verdict != "done" and not fault:
        assert kvm_rdmsr(machine, index)[1] == before


@given(st.integers(0, 7), st.integers(0, (1 << 64) - 1), st.sampled_from(("emulated", "mediated")))
def test_the_legacy_address_sign_extends(n, value, mode):
    """Where the guest owns the PMU silicon does it, and a write that comes to KVM all the same is #GP."""
    machine = system("EXIT 0\n", "passthrough")
    assert kvm_wrmsr(machine, 0xC1 + n, value)
    assert [line["text"] for line in log_report(machine.S)] == [
        f"kvm_intel: IA32_PMC{n} of a passthrough PMU was written with an exit"
    ]
    assert kvm_wrmsr(machine, 0xC1 + n, value)
    assert len(log_report(machine.S)) == 1
    machine = system("EXIT 0\n", mode)
    assert not kvm_wrmsr(machine, 0xC1 + n, value)
    low = value & 0xFFFF_FFFF
    wanted = low | (0xFFFF_0000_0000 if low >> 31 else 0)
    assert kvm_rdmsr(machine, 0xC1 + n) == kvm_rdmsr(machine, 0x4C1 + n) == (False, wanted)


ECX = [0, 7, 8, 1 << 30, 1 << 30 | 2, 1 << 30 | 3, 1 << 29, 1 << 31]


@given(st.integers(0, (1 << 32) - 1) | st.sampled_from(ECX),
       st.sampled_from(range(len(SHAPES))))  # fmt: skip
def test_rdpmc_index(ecx, shape_index):
    settings = SHAPES[shape_index]
    shape = guest_shape(cpu("spr").shape(), settings)
    machine = system("EXIT 0\n", "emulated", guest=settings)
    kind, index = ecx & ~0xFFFF, ecx & 0xFFFF
    wanted = -1
    if shape.version and kind == 0 and index < shape.gp:
        wanted = index
    elif shape.version and kind == 1 << 30 and index < shape.fixed:
        wanted = 8 + index
    assert kvm_pmu_rdpmc_idx(machine.S, kvm_get_running_vcpu(machine.S), U64(ecx)) == wanted


RING3 = """
    jmp begin
.align 16
idt:  .zero 16 * 64
idtr: .word 16 * 64 - 1
      .quad idt
gp:   EXIT 13
begin:
    lea rax, [gp]
    lea rbx, [idt + 16 * 13]
    mov [rbx], ax
    mov word ptr [rbx + 2], 8
    mov word ptr [rbx + 4], 0x8e00
    shr rax, 16
    mov [rbx + 6], ax
    lidt [idtr]
    mov rax, cr4
    {pce}
    mov cr4, rax
    mov ecx, {ecx}
    rdpmc
    EXIT 0
"""


@pytest.mark.parametrize("mode", ["bare", "none", "emulated", "passthrough", "mediated"])
def test_a_bad_rdpmc_index_is_gp_after_the_exit(mode):
    """At CPL 0 the exit comes first: KVM itself raises #GP. Passed through, silicon does."""
    _machine, result = run(RING3.format(pce="or eax, 0x100", ecx=99), mode)
    assert result["exit_code"] == 13
    assert result["exits"].get("RDPMC", 0) == (0 if mode in ("bare", "passthrough") else 1)


@pytest.mark.parametrize("mode", ["emulated", "passthrough", "mediated"])
def test_a_fault_changes_nothing(mode):
    guest = RING3.format(pce="nop", ecx=0).replace("    rdpmc\n", """
    mov ecx, 0x38f
    mov eax, 0x10000000
    mov edx, 0x7fffffff
    mov esi, 0x1234
    wrmsr
""")
    _, result = run(guest, mode)
    registers = result["registers"]
    assert result["exit_code"] == 13
    assert (registers["rcx"], registers["rdx"], registers["rsi"]) == (0x38F, 0x7FFFFFFF, 0x1234)
    assert result["msr"].get("IA32_PERF_GLOBAL_CTRL", {}).get("writes", 0) == 0


def test_msr_statistics_count_what_exits():
    body = "WRMSR32 0x38f, 0\n RDMSR32 0x38f\n RDMSR32 0x186\n EXIT 0\n"
    wanted = {"emulated": (2, 1), "passthrough": (0, 1)}
    for mode, exits in wanted.items():
        msr = run(body, mode)[1]["msr"]
        assert msr["IA32_PERF_GLOBAL_CTRL"] == {"reads": 1, "writes": 1, "exits": exits[0]}
        assert msr["IA32_PERFEVTSEL0"] == {"reads": 1, "writes": 0, "exits": exits[1]}
