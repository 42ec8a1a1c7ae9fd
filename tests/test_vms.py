"""Two VMs of one host with different vPMUs: what each counts, who is let in, and what the host sees."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.linux.syscalls.test_kvm import errno
from tests.linux.syscalls.test_mediated_pmu import Bare
from vpmu_emu._jit import COMPILES
from vpmu_emu.asm import assemble
from vpmu_emu.errors import ConfigError
from vpmu_emu.linux.state import VPMU_EMULATED, VPMU_MEDIATED, VPMU_PASSTHROUGH
from vpmu_emu.linux.syscalls.kvm import VM_VPMU
from vpmu_emu.system import System, host_model
from vpmu_emu.tables.cpus import cpu
from vpmu_emu.tables.modes import MODES

compiled = pytest.mark.skipif(not COMPILES, reason="millions of instructions")
SECOND = (ROOT / "guests" / "host" / "second_vm.s").read_text()
SPINS, WINDOWS = 10_000, 1_200
# Counts a loop over and over on counter 0, as the second VM's guest does; exits with how many
# counts were wrong.
FIRST = f"""
        .intel_syntax noprefix
        .include "msr.inc"
        .include "macros.inc"
        .text
        .globl _start
_start: wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        wrmsr_const IA32_PERFEVTSEL0, EVT_INST_RETIRED_ANY_P | EVTSEL_OS | EVTSEL_USR | EVTSEL_EN
        xor r15d, r15d
        mov ebp, {WINDOWS}
1:      wrmsr_const IA32_PMC0, 0
        wrmsr_const IA32_PERF_GLOBAL_CTRL, GLOBAL_PMC0
        mov esi, {SPINS}
2:      dec esi
        jnz 2b
        wrmsr_const IA32_PERF_GLOBAL_CTRL, 0
        rdmsr_rax IA32_PMC0
        mov r14, rax
        cmp eax, {2 * SPINS + 5}
        je 3f
        inc r15d
3:      dec ebp
        jnz 1b
        mov eax, r15d
        out DEBUG_EXIT, eax
"""


def both(mode: str, other: str, *, second: str = SECOND, **options) -> dict:
    """The result of a run with FIRST in the VMM's VM and second_vm.s beside it, on one core."""
    program, beside = assemble(FIRST, "first.s"), assemble(second, "second_vm.s")
    system = System(program, vpmu=mode, other_vpmu=other, host=[beside], ram=2, **options)
    return system.result(system.run()).to_json()


def second(result: dict) -> int | None:
    """How the other VMM ended: 0 if all its guest's counts were exact."""
    return next(task["exit_code"] for task in result["tasks"] if task["program"] == "second_vm.s")


@compiled
@pytest.mark.parametrize(("mode", "other", "kvm"), [
    ("passthrough", "emulated", {}),
    ("passthrough", None, {}), ("emulated", None, {}), ("mediated", None, {}),
    ("emulated", "mediated", {"mixed": 1}), ("mediated", "emulated", {"mixed": 1}),
])  # fmt: skip
def test_both_are_exact(mode, other, kvm):
    result = both(mode, other, kvm=kvm)
    assert result["exit_code"] == 0, "the VMM's guest"
    assert second(result) == 0
    assert "exact counts of the second guest: 20" in result["serial"]
    first, beside = result["vms"]
    assert (first["vpmu"], beside["vpmu"]) == (mode, other or mode)
    for vm in (first, beside):
        owns = MODES[vm["vpmu"]].owns_pmu
        assert vm["profiled"] == ("no" if owns else "yes")
        assert (vm["events"] > 0) == (not owns)
    # Neither has the other's time: what they ran together is what the report says of guests.
    assert first["stolen_cycles"] > beside["guest_cycles"] > 0
    spent = first["guest_cycles"] + beside["guest_cycles"]
    assert abs(spent - result["cycles_by"]["guest"]) < result["cycles_by"]["guest"] // 10


@compiled
def test_alone_nothing_is_stolen():
    system = System(assemble(FIRST, "first.s"), vpmu="emulated", ram=2)
    (vm,) = system.result(system.run()).to_json()["vms"]
    assert vm["stolen_cycles"] == 0


@compiled
def test_what_the_host_can_still_profile():
    """Guests of a CPU: the emulated one, until the other one's first entry puts the event into ERROR."""
    seen = {}
    for mode, other in (("passthrough", "emulated"), ("emulated", None)):
        result = both(mode, other, host_events=["instructions:G"])
        (event,) = (e for e in result["perf"]["events"] if e["owner"] == "host")
        seen[mode] = event["state"], event["count"]
    assert seen["passthrough"][0] == "ERROR"
    assert seen["passthrough"][1] < 5_000  # the second VM's first window
    assert seen["emulated"][0] == "ACTIVE"
    assert seen["emulated"][1] > WINDOWS * 2 * SPINS


@compiled
def test_emulated_beside_mediated_stands_still():
    """The mediated VM is there first: KVM gets no event for the other one (EOPNOTSUPP); nothing tells."""
    result = both("mediated", "emulated")
    assert result["exit_code"] == 0
    assert second(result) == 16
    # What KVM counts in software, the WRMSR that closes the window, is all that there is.
    assert "the second guest counted 1\n" in result["serial"]
    assert result["vms"][1]["events"] == 0


@compiled
def test_mediated_beside_emulated_is_refused():
    """The emulated VM's counters are events that count in guests: EBUSY at KVM_CREATE_VCPU."""
    late = SECOND.replace("_start:\n", "_start: sleep_ns 100000\n", 1)
    result = both("emulated", "mediated", second=late)
    assert result["exit_code"] == 0
    assert second(result) == 6  # exit_if_error 6
    assert second(both("emulated", "mediated", second=late, kvm={"mixed": 1})) == 0


@pytest.mark.uncompiled
def test_programs_have_the_types_under_their_names():
    text = "".join(f".quad VM_{name.upper()}\n" for name, mode in MODES.items() if mode.hypervisor)
    program = assemble(f'.include "linux.inc"\n.include "host.inc"\n_start: nop\n.data\n{text}', "t.s")
    values = np.frombuffer(next(bytes(s.data) for s in program.segments if len(s.data) > 8), dtype="<u8")
    assert values.tolist() == [VM_VPMU + n for n, mode in enumerate(MODES.values()) if mode.hypervisor]


@pytest.mark.parametrize(("mode", "types"), [
    ("emulated", {1: None, 2: VPMU_EMULATED, 4: VPMU_MEDIATED}),
    ("mediated", {1: None, 2: VPMU_EMULATED, 4: VPMU_MEDIATED}),
    ("passthrough", {1: None, 2: VPMU_EMULATED, 3: VPMU_PASSTHROUGH}),
    ("none", {1: None}),
])  # fmt: skip
def test_the_type_of_a_vm(mode, types):
    for kind in (0, 1, 2, 3, 4, 5):
        vmm = Bare(mode)
        vm = vmm.ioctl(vmm.kvm, "KVM_CREATE_VM", VM_VPMU + kind)
        if kind not in types:
            assert vm == errno("EINVAL")
            continue
        assert vm > 0
        row = vmm.kernel.S.vms[0]
        assert int(row.pmu_off) == (types[kind] is None)
        assert int(row.vpmu) == (types[kind] or VPMU_EMULATED)
    assert Bare(mode).ioctl(Bare(mode).kvm, "KVM_CREATE_VM", 1) == errno("EINVAL")


@pytest.mark.uncompiled
def test_a_cpu_that_cannot_be_mediated_has_no_such_vm():
    vmm = Bare("emulated")
    vmm.kernel.host.model = host_model("spr", {"pmu.version": 3})
    assert vmm.ioctl(vmm.kvm, "KVM_CREATE_VM", VM_VPMU + 4) == errno("EINVAL")
    asked = {"vpmu": "emulated", "other_vpmu": "mediated", "settings": {"pmu.version": 3}}
    with pytest.raises(ConfigError, match="version 3: no GLOBAL_STATUS_SET"):
        System(assemble(FIRST, "first.s"), **asked)


@pytest.mark.uncompiled
def test_branch_records_are_for_guests_of_perf_alone():
    """In `mediated` they leave every guest's PERF_CAPABILITIES, as the module says; else the VM's own."""
    lbr = cpu("icx").perf_capabilities & 0x3F
    for mode, kind, has in (("emulated", 2, True), ("emulated", 4, False), ("mediated", 2, False)):
        vmm = Bare(mode, cpu="icx")
        vmm.kernel.S.config.fixed_cap = 3
        vm = vmm.ioctl(vmm.kvm, "KVM_CREATE_VM", VM_VPMU + kind)
        assert vmm.ioctl(vm, "KVM_CREATE_IRQCHIP") == 0
        vmm.vcpu = vmm.ioctl(vm, "KVM_CREATE_VCPU", 0)
        assert vmm.vcpu > 0
        assert int(vmm.kernel.S.vcpus[0].perf_capabilities) & 0x3F == (lbr if has else 0)
        assert vmm.ioctl(vmm.vcpu, "KVM_SET_CPUID2", vmm.supported()) == 0
        assert vmm.set((0x345, 0x2000 | lbr)) == int(has)


@pytest.mark.uncompiled
@pytest.mark.parametrize(("mode", "other", "words"), [
    ("emulated", "passthrough", "mode emulated is linux-7.0, mode passthrough rfc-v1"),
    ("mediated", "passthrough", "mode mediated is linux-7.0, mode passthrough rfc-v1"),
    ("passthrough", "mediated", "both VMs have one kernel .allowed: none emulated passthrough"),
    ("none", "emulated", "guests have no PMU in mode none"),
    ("emulated", "bare", "in mode bare there is no hypervisor"),
    ("bare", "emulated", "there is no hypervisor in mode bare"),
    ("emulated", "mediate", "no mode is named 'mediate'; did you mean mediated"),
])  # fmt: skip
def test_modes_of_two_kernels_are_refused_by_name(mode, other, words):
    with pytest.raises(ConfigError, match=words):
        System(assemble(FIRST, "first.s"), vpmu=mode, other_vpmu=other)
