"""KVM's ioctls: what a VMM gives comes back, and everything wrong has the errno of Linux."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.linux.syscalls.kernel import MIB, Kernel
from vpmu_emu.asm import assemble
from vpmu_emu.linux.run import run_host
from vpmu_emu.linux.syscalls import handle
from vpmu_emu.linux.syscalls.files import leave_run
from vpmu_emu.linux.syscalls.host import IN_USE
from vpmu_emu.machine.state import RUN_SYSCALL
from vpmu_emu.tables.linux import ERRNO, STRUCTS, constant

pytestmark = pytest.mark.uncompiled

EVTSEL0, PMC0, A_PMC0, FIXED_CTR0 = 0x186, 0xC1, 0x4C1, 0x309
FIXED_CTR_CTRL, GLOBAL_STATUS, GLOBAL_CTRL, OVF_CTRL, PERF_CAPABILITIES = 0x38D, 0x38E, 0x38F, 0x390, 0x345
PEBS_ENABLE = 0x3F1
TSC, TSC_DEADLINE, APIC_BASE, LSTAR, FS_BASE = 0x10, 0x6E0, 0x1B, 0xC0000082, 0xC0000100
INSTRUCTIONS = 0x4300C0
RAM = MIB
SCRATCH = 64 * 4096
BAD = 0x6FFF_0000  # nothing is mapped there
READ_EAX, WRITE_EAX = b"\x8b\x04\x25", b"\x89\x04\x25"  # from and to a 32-bit address


def errno(name: str) -> int:
    return -ERRNO[name]


class Vmm:
    """What a VMM has open, with the ioctls by name."""

    def __init__(
        self, mode: str = "emulated", irqchip: bool = True, cpuid: bool = True, cpu: str = "spr"
    ) -> None:
        self.kernel = Kernel(mode=mode, cpu=cpu).start()
        self.kernel.S.config.fixed_cap = 3
        self.room, self.left = self.kernel.page(size=SCRATCH), SCRATCH
        path = self.page(b"/dev/kvm\0")
        self.kvm = self.kernel.call("openat", -100, path, constant("O_RDWR"), 0)
        self.vm = self.ioctl(self.kvm, "KVM_CREATE_VM")
        self.ram = self.kernel.call("mmap", 0, RAM, 3, 0x22 | constant("MAP_HUGETLB"), -1, 0)
        assert self.region() == 0
        if irqchip:
            assert self.ioctl(self.vm, "KVM_CREATE_IRQCHIP") == 0
        self.vcpu = self.ioctl(self.vm, "KVM_CREATE_VCPU", 0)
        if cpuid:
            assert self.ioctl(self.vcpu, "KVM_SET_CPUID2", self.supported()) == 0

    @property
    def host(self) -> Any:
        return self.kernel.host

    def page(self, data: bytes = b"", size: int = 4096) -> int:
        """Address of memory of the VMM with these bytes in it, the rest zero."""
        self.left -= -(-max(size, len(data)) // 4096) * 4096
        assert self.left >= 0
        self.host.copy_to_user(self.room + self.left, data.ljust(size, b"\0"))
        return self.room + self.left

    def ioctl(self, fd: int, name: str, arg: int = 0) -> int:
        return self.kernel.call("ioctl", fd, constant(name), arg)

    def give(self, fd: int, name: str, data: bytes) -> int:
        return self.ioctl(fd, name, self.page(data))

    def get(self, name: str, kind: str, fd: int | None = None) -> Any:
        at = self.page()
        assert self.ioctl(self.vcpu if fd is None else fd, name, at) == 0
        row = STRUCTS[kind]
        return row.read(self.host.copy_from_user(at, row.size)).copy()

    def region(self, slot: int = 0, gpa: int = 0, size: int = RAM, at: int = -1, flags: int = 0) -> int:
        data = STRUCTS["kvm_userspace_memory_region"].new(
            slot=slot, flags=flags, guest_phys_addr=gpa, memory_size=size,
            userspace_addr=self.ram if at == -1 else at,
        )  # fmt: skip
        return self.give(self.vm, "KVM_SET_USER_MEMORY_REGION", data.tobytes())

    def supported(self) -> int:
        """Address of a struct kvm_cpuid2 with what KVM supports."""
        at = self.page(STRUCTS["kvm_cpuid2"].new(nent=64).tobytes())
        assert self.ioctl(self.kvm, "KVM_GET_SUPPORTED_CPUID", at) == 0
        return at

    def leaves(self, at: int) -> dict[int, Any]:
        row = STRUCTS["kvm_cpuid2"]
        n = int(row.read(self.host.copy_from_user(at, row.size))["nent"])
        data = self.host.copy_from_user(at, row.size + 40 * n)
        return {int(e["function"]): e for e in row.tails(data)}

    def msrs(self, name: str, pairs: list[tuple[int, int]]) -> tuple[int, list[int]]:
        entry, row = STRUCTS["kvm_msr_entry"], STRUCTS["kvm_msrs"]
        data = row.new(nmsrs=len(pairs)).tobytes()
        data += b"".join(entry.new(index=i, data=v).tobytes() for i, v in pairs)
        at = self.page(data)
        done = self.ioctl(self.vcpu, name, at)
        found = row.tails(self.host.copy_from_user(at, len(data)))
        return done, [int(e["data"]) for e in found]

    def set(self, *pairs: tuple[int, int]) -> int:
        return self.msrs("KVM_SET_MSRS", list(pairs))[0]

    def read(self, *indexes: int) -> list[int]:
        done, values = self.msrs("KVM_GET_MSRS", [(i, 0xDEAD) for i in indexes])
        assert done == len(indexes)
        return values

    def long_mode(self) -> None:
        """SREGS of 64-bit mode with the identity map."""
        sregs = self.get("KVM_GET_SREGS", "kvm_sregs")
        sregs["cr0"], sregs["cr4"], sregs["efer"] = 0x8000_0033, 0x20, 0x500
        sregs["cs"]["selector"], sregs["cs"]["l"] = 8, 1
        for name in ("ds", "es", "fs", "gs", "ss"):
            sregs[name]["selector"] = 0x10
        assert self.give(self.vcpu, "KVM_SET_SREGS", sregs.tobytes()) == 0

    def load(self, code: bytes, at: int = 0x1000) -> None:
        """The guest's first code, and registers that begin there."""
        self.long_mode()
        self.host.copy_to_user(self.ram + at, code)
        regs = STRUCTS["kvm_regs"].new(rip=at, rsp=0x8000, rflags=2)
        assert self.give(self.vcpu, "KVM_SET_REGS", regs.tobytes()) == 0

    def run(self) -> int:
        """KVM_RUN, with the guest's turn: its result."""
        kernel = self.kernel
        before = self.ioctl(self.vcpu, "KVM_RUN")
        if int(kernel.S.tasks[kernel.host.task_row].vcpu) < 0:
            return before
        with np.errstate(over="ignore"):
            for _ in range(500):
                # In short slices: most returns of KVM_RUN need no Python, and the VMM's program goes on.
                kernel.E.t_slice = int(kernel.host.core.t) + 500 * 16
                if int(run_host(kernel.S, kernel.M, kernel.E)) == RUN_SYSCALL:
                    assert kernel.S.tasks[0].entered == 3
                    handle(kernel.host)
                if int(kernel.S.tasks[0].vcpu) < 0:
                    value = int(kernel.host.core.regs[0])
                    return value - (1 << 64 if value >> 63 else 0)
        raise AssertionError("KVM_RUN does not come back")

    @property
    def kvm_run(self) -> Any:
        return STRUCTS["kvm_run"].view(self.kernel.M, int(self.kernel.S.vcpus[0].run_page))

    @property
    def pio(self) -> Any:
        at = int(self.kernel.S.vcpus[0].run_page) + 4096
        return self.kernel.M[at : at + 4]


def test_the_device():
    vmm = Vmm()
    assert vmm.ioctl(vmm.kvm, "KVM_GET_API_VERSION") == 12
    assert vmm.ioctl(vmm.kvm, "KVM_GET_API_VERSION", 1) == errno("EINVAL")
    assert vmm.ioctl(vmm.kvm, "KVM_GET_VCPU_MMAP_SIZE") == 3 * 4096
    assert vmm.ioctl(vmm.kvm, "KVM_CREATE_VM", 1) == errno("EINVAL")
    assert vmm.ioctl(vmm.kvm, "KVM_CREATE_VM") > 0
    assert vmm.ioctl(vmm.kvm, "KVM_CREATE_VM") == errno("ENOMEM")
    known = {"IRQCHIP": 1, "PMU_CAPABILITY": 1, "MAX_VCPUS": 4, "SET_TSS_ADDR": 1, "BINARY_STATS_FD": 0}
    for name, value in known.items():
        for fd in (vmm.kvm, vmm.vm):
            assert vmm.ioctl(fd, "KVM_CHECK_EXTENSION", constant(f"KVM_CAP_{name}")) == value
    assert vmm.kernel.call("read", vmm.vm, vmm.page(), 8) == errno("EINVAL")


def test_requests_of_another_file():
    vmm = Vmm()
    assert vmm.ioctl(vmm.kvm, "KVM_RUN") == errno("EINVAL")
    assert vmm.ioctl(vmm.vm, "KVM_RUN") == errno("ENOTTY")
    assert vmm.ioctl(vmm.vcpu, "KVM_CREATE_VM") == errno("EINVAL")
    assert vmm.ioctl(99, "KVM_RUN") == errno("EBADF")
    assert vmm.ioctl(1, "KVM_RUN") == errno("ENOTTY")
    # another size in the number is another request
    assert vmm.kernel.call("ioctl", vmm.vcpu, constant("KVM_GET_REGS") + (8 << 16), 0) == errno("EINVAL")


@pytest.mark.parametrize(
    "name",
    ["KVM_GET_REGS", "KVM_SET_REGS", "KVM_GET_SREGS", "KVM_SET_SREGS", "KVM_GET_MSRS", "KVM_SET_MSRS",
     "KVM_GET_LAPIC", "KVM_SET_LAPIC", "KVM_GET_VCPU_EVENTS", "KVM_SET_VCPU_EVENTS", "KVM_SET_CPUID2",
     "KVM_GET_CPUID2", "KVM_GET_MP_STATE", "KVM_SET_MP_STATE", "KVM_INTERRUPT"],
)  # fmt: skip
def test_bad_pointers(name):
    vmm = Vmm()
    assert vmm.ioctl(vmm.vcpu, name, BAD) == errno("EFAULT")


def test_memory_regions():
    vmm = Vmm()
    assert vmm.region(slot=1, gpa=RAM, size=4096) == 0
    assert vmm.region(slot=2, gpa=RAM, size=4096) == errno("EEXIST")
    assert vmm.region(slot=0, size=4096) == errno("EINVAL")  # a slot keeps its size
    assert vmm.region(slot=0, at=vmm.ram + 4096) == errno("EINVAL")  # and its place in the VMM
    assert vmm.region(slot=2, gpa=2 * RAM, size=4095) == errno("EINVAL")
    assert vmm.region(slot=2, gpa=2 * RAM + 1, size=4096) == errno("EINVAL")
    assert vmm.region(slot=2, gpa=2 * RAM, size=4096, at=vmm.ram + 1) == errno("EINVAL")
    assert vmm.region(slot=2, gpa=2 * RAM, size=4096, at=1 << 60) == errno("EINVAL")
    assert vmm.region(slot=40_000, gpa=2 * RAM, size=4096) == errno("EINVAL")
    assert vmm.region(slot=2, gpa=2 * RAM, size=4096, flags=1) == errno("EINVAL")
    assert vmm.region(slot=7, size=0) == errno("EINVAL")
    assert vmm.region(slot=1, gpa=RAM, size=0) == 0
    assert vmm.region(slot=1, gpa=RAM, size=4096, at=BAD) == 0  # nobody looks before the guest does
    vmm.load(READ_EAX + RAM.to_bytes(4, "little") + b"\xf4")
    assert vmm.run() == errno("EFAULT")
    assert vmm.ioctl(vmm.vm, "KVM_SET_USER_MEMORY_REGION", BAD) == errno("EFAULT")


def test_vcpus_and_the_irqchip():
    vmm = Vmm()
    assert vmm.ioctl(vmm.vm, "KVM_CREATE_VCPU", 0) == errno("EEXIST")
    assert vmm.ioctl(vmm.vm, "KVM_CREATE_VCPU", 4096) == errno("EINVAL")
    assert vmm.ioctl(vmm.vm, "KVM_CREATE_IRQCHIP") == errno("EEXIST")
    for ident in (1, 2, 3):
        assert vmm.ioctl(vmm.vm, "KVM_CREATE_VCPU", ident) > 0
    assert vmm.ioctl(vmm.vm, "KVM_CREATE_VCPU", 9) == errno("EINVAL")
    bare = Vmm(irqchip=False)
    assert bare.ioctl(bare.vm, "KVM_CREATE_IRQCHIP") == errno("EINVAL")
    assert bare.ioctl(bare.vcpu, "KVM_GET_LAPIC", bare.page()) == errno("EINVAL")


def test_registers_come_back():
    vmm = Vmm()
    row = STRUCTS["kvm_regs"]
    regs = row.new(**{f.name: 0x1000 + 16 * n for n, f in enumerate(row.fields)})
    assert vmm.give(vmm.vcpu, "KVM_SET_REGS", regs.tobytes()) == 0
    assert vmm.get("KVM_GET_REGS", "kvm_regs").tobytes()[:-8] == regs.tobytes()[:-8]
    assert int(vmm.get("KVM_GET_REGS", "kvm_regs")["rflags"]) == int(regs["rflags"]) | 2
    vmm.long_mode()
    sregs = vmm.get("KVM_GET_SREGS", "kvm_sregs")
    assert (int(sregs["cr0"]), int(sregs["cs"]["l"]), int(sregs["ss"]["selector"])) == (0x80000033, 1, 0x10)
    assert vmm.give(vmm.vcpu, "KVM_SET_SREGS", sregs.tobytes()) == 0
    assert vmm.get("KVM_GET_SREGS", "kvm_sregs").tobytes() == sregs.tobytes()


@pytest.mark.parametrize(
    ("field", "value"),
    [("cr4", 0), ("efer", 0x100), ("efer", 0x8500), ("cr0", 1 << 32), ("cr4", 1 << 40), ("cr3", 1 << 52),
     ("cr0", 0xA0000033), ("apic_base", 0xFEE00400), ("apic_base", 0xFEE00901)],
)  # fmt: skip
def test_system_registers_that_cannot_be(field, value):
    vmm = Vmm()
    vmm.long_mode()
    sregs = vmm.get("KVM_GET_SREGS", "kvm_sregs")
    sregs[field] = value
    assert vmm.give(vmm.vcpu, "KVM_SET_SREGS", sregs.tobytes()) == errno("EINVAL")


def test_cpuid():
    vmm = Vmm(cpuid=False)
    at = vmm.supported()
    leaves = vmm.leaves(at)
    assert int(leaves[0xA]["eax"]) & 0xFFFF == 0x802
    assert int(leaves[0xA]["edx"]) & 31 == 3
    assert int(vmm.kernel.S.vcpus[0].pmu.version) == 0  # none before KVM_SET_CPUID2
    few = vmm.page(STRUCTS["kvm_cpuid2"].new(nent=2).tobytes())
    assert vmm.ioctl(vmm.kvm, "KVM_GET_SUPPORTED_CPUID", few) == errno("E2BIG")
    many = vmm.page(STRUCTS["kvm_cpuid2"].new(nent=257).tobytes())
    assert vmm.ioctl(vmm.vcpu, "KVM_SET_CPUID2", many) == errno("E2BIG")
    data = bytearray(vmm.host.copy_from_user(at, 8 + 40 * len(leaves)))
    where = 8 + 40 * list(leaves).index(0xA)
    data[where + 12 : where + 16] = (0x8300402).to_bytes(4, "little")
    assert vmm.give(vmm.vcpu, "KVM_SET_CPUID2", bytes(data)) == 0
    pmu = vmm.kernel.S.vcpus[0].pmu
    assert (int(pmu.version), int(pmu.nr_arch_gp_counters), int(pmu.width)) == (2, 4, 48)
    back = vmm.page(STRUCTS["kvm_cpuid2"].new(nent=64).tobytes())
    assert vmm.ioctl(vmm.vcpu, "KVM_GET_CPUID2", back) == 0
    assert vmm.host.copy_from_user(back, len(data)) == bytes(data)
    assert vmm.ioctl(vmm.vcpu, "KVM_GET_CPUID2", few) == errno("E2BIG")


def test_cpuid_stays_once_the_vcpu_has_run():
    vmm = Vmm()
    vmm.load(b"\xe6\x80\xf4")
    assert vmm.run() == 0
    at = vmm.supported()
    assert vmm.ioctl(vmm.vcpu, "KVM_SET_CPUID2", at) == 0  # the same
    few = vmm.host.copy_from_user(at, 8 + 40)
    assert vmm.give(vmm.vcpu, "KVM_SET_CPUID2", b"\1" + few[1:]) == errno("EINVAL")
    assert vmm.set((PERF_CAPABILITIES, 0)) == 0
    assert vmm.set((PERF_CAPABILITIES, 0x2000)) == 0
    assert vmm.set((PERF_CAPABILITIES, vmm.read(PERF_CAPABILITIES)[0])) == 1


@pytest.mark.parametrize("mode", ["emulated", "passthrough", "mediated"])
def test_msrs_come_back(mode):
    vmm = Vmm(mode)
    pairs = [(EVTSEL0, INSTRUCTIONS), (PMC0, 0x8000_0000), (FIXED_CTR0 + 1, 77), (FIXED_CTR_CTRL, 0x3B),
             (GLOBAL_STATUS, 1 << 32), (GLOBAL_CTRL, 0x7_0000_00FF), (LSTAR, 0xFFFF_8000_0000_0000),
             (FS_BASE, 0x1234), (APIC_BASE, 0xFEE00D00)]  # fmt: skip
    assert vmm.set(*pairs) == len(pairs)
    # A host-initiated write of a counter is not sign-extended.
    assert vmm.read(*(i for i, _ in pairs)) == [v for _, v in pairs]
    assert vmm.set((OVF_CTRL, 1 << 32)) == 1
    assert vmm.read(GLOBAL_STATUS, OVF_CTRL) == [1 << 32, 0]  # it clears nothing for the host
    assert vmm.set((TSC, 1 << 40)) == 1
    assert 0 <= vmm.read(TSC)[0] - (1 << 40) < 1 << 20


@pytest.mark.parametrize("mode", ["none", "emulated", "passthrough", "mediated"])
def test_msrs_that_are_refused(mode):
    vmm = Vmm(mode)
    assert vmm.set((FS_BASE, 1), (0x12345, 0), (FS_BASE, 2)) == 1  # it stops at the first
    assert vmm.read(FS_BASE) == [1]
    if mode == "none":
        assert vmm.set((EVTSEL0, 0)) == 0
        assert vmm.msrs("KVM_GET_MSRS", [(GLOBAL_CTRL, 0)])[0] == 0
        return
    assert vmm.set((EVTSEL0, 1 << 40)) == 0
    assert vmm.set((GLOBAL_CTRL, 1 << 50)) == 0
    assert vmm.set((GLOBAL_STATUS, 1 << 50)) == 0
    assert vmm.set((A_PMC0, 1 << 50)) == 0
    assert vmm.set((PERF_CAPABILITIES, 0x2005)) == 0
    assert vmm.set((PERF_CAPABILITIES, 0)) == 1  # no full-width writes: those MSRs are gone
    assert vmm.set((A_PMC0, 1)) == 0
    assert vmm.msrs("KVM_GET_MSRS", [(A_PMC0, 0)])[0] == 0
    assert vmm.read(PEBS_ENABLE) == [0]  # one of the list may be read as 0, though, and written so
    assert vmm.set((PEBS_ENABLE, 0), (PEBS_ENABLE, 1)) == 1
    many = vmm.page(STRUCTS["kvm_msrs"].new(nmsrs=256).tobytes(), size=8192)
    assert vmm.ioctl(vmm.vcpu, "KVM_GET_MSRS", many) == errno("E2BIG")


def test_pebs_needs_the_debug_store_in_cpuid():
    """PERF_CAPABILITIES with a PEBS format after a CPUID with DS and DTES64, and then its registers."""
    caps, enable, area = 0x24C0, PEBS_ENABLE, 0x600
    vmm = Vmm(cpuid=False)
    at = vmm.supported()
    leaves = vmm.leaves(at)
    data = bytearray(vmm.host.copy_from_user(at, 8 + 40 * len(leaves)))
    where = 8 + 40 * list(leaves).index(1)
    assert data[where + 20] & 1 << 2  # vmx_set_cpu_caps()
    assert data[where + 26] & 1 << 5
    data[where + 26] &= ~(1 << 5)
    assert vmm.give(vmm.vcpu, "KVM_SET_CPUID2", bytes(data)) == 0
    assert vmm.set((PERF_CAPABILITIES, 0), (PERF_CAPABILITIES, caps)) == 1  # one of the two is not enough
    data[where + 26] |= 1 << 5
    assert vmm.give(vmm.vcpu, "KVM_SET_CPUID2", bytes(data)) == 0
    assert vmm.set((enable, 1)) == 0
    assert vmm.set((PERF_CAPABILITIES, caps), (enable, 3), (area, 0x5000)) == 3
    assert vmm.read(PERF_CAPABILITIES, enable, area) == [caps, 3, 0x5000]
    assert vmm.set((enable, 1 << 32)) == 0  # fixed counters need the baseline
    assert vmm.set((area, 1 << 47)) == 0


def test_the_list_of_msrs():
    vmm = Vmm()
    row = STRUCTS["kvm_msr_list"]
    at = vmm.page(row.new(nmsrs=3).tobytes())
    assert vmm.ioctl(vmm.kvm, "KVM_GET_MSR_INDEX_LIST", at) == errno("E2BIG")
    n = vmm.host.get_user(at, 4)
    assert vmm.ioctl(vmm.kvm, "KVM_GET_MSR_INDEX_LIST", at) == 0
    found = [int(i) for i in row.tails(vmm.host.copy_from_user(at, 4 + 4 * n))]
    assert {GLOBAL_CTRL, EVTSEL0 + 7, FIXED_CTR0 + 2, TSC, PERF_CAPABILITIES} <= set(found)
    assert {0x3F1, 0x600} <= set(found)  # PEBS, which a guest may have
    assert len(vmm.read(*found)) == n  # and every one can be read


def test_no_pmu_by_capability():
    vmm = Vmm(cpuid=False)
    cap = STRUCTS["kvm_enable_cap"].new(cap=constant("KVM_CAP_PMU_CAPABILITY"))
    cap["args"][0] = 1
    assert vmm.give(vmm.vm, "KVM_ENABLE_CAP", cap.tobytes()) == errno("EINVAL")  # too late
    fresh = Vmm.__new__(Vmm)
    fresh.kernel, fresh.kvm, fresh.room, fresh.left = vmm.kernel, vmm.kvm, vmm.room, vmm.left
    fresh.vm = vmm.ioctl(vmm.kvm, "KVM_CREATE_VM")
    bad = STRUCTS["kvm_enable_cap"].new(cap=constant("KVM_CAP_PMU_CAPABILITY"))
    bad["args"][0] = 2
    assert fresh.give(fresh.vm, "KVM_ENABLE_CAP", bad.tobytes()) == errno("EINVAL")
    cap["flags"] = 1
    assert fresh.give(fresh.vm, "KVM_ENABLE_CAP", cap.tobytes()) == errno("EINVAL")
    cap["flags"] = 0
    assert fresh.give(fresh.vm, "KVM_ENABLE_CAP", cap.tobytes()) == 0
    fresh.vcpu = fresh.ioctl(fresh.vm, "KVM_CREATE_VCPU", 0)
    assert fresh.ioctl(fresh.vcpu, "KVM_SET_CPUID2", fresh.supported()) == 0
    assert int(vmm.kernel.S.vcpus[1].pmu.version) == 0
    assert fresh.set((GLOBAL_CTRL, 1)) == 0


def test_event_filters():
    vmm = Vmm()
    row = STRUCTS["kvm_pmu_event_filter"]

    def put(events=(), **values):
        return vmm.give(
            vmm.vm, "KVM_SET_PMU_EVENT_FILTER",
            row.new(**{"nevents": len(events), **values}).tobytes() + np.array(events, "<u8").tobytes(),
        )  # fmt: skip

    assert put([0xC0, 0x3C], action=1, fixed_counter_bitmap=2) == 0
    vm = vmm.kernel.S.vms[0]
    assert (int(vm.filter_on), int(vm.action), int(vm.nr_includes)) == (1, 1, 2)
    assert int(vm.fixed_counter_bitmap) == 2
    assert int(vmm.kernel.S.vcpus[0].requests) & 1 << 10
    assert put(action=2) == errno("EINVAL")
    assert put(flags=2) == errno("EINVAL")
    assert put(nevents=301) == errno("E2BIG")
    assert put([1 << 60], flags=1) == 0
    assert put([1 << 40], flags=1) == errno("EINVAL")
    assert vmm.ioctl(vmm.vm, "KVM_SET_PMU_EVENT_FILTER", BAD) == errno("EFAULT")


def test_lapic_events_and_mp_state_come_back():
    vmm = Vmm()
    state = vmm.get("KVM_GET_LAPIC", "kvm_lapic_state")
    page = bytearray(state.tobytes())
    assert page[0x340:0x344] == (0x10000).to_bytes(4, "little")
    page[0x340:0x344] = (0x400).to_bytes(4, "little")
    page[0xF0:0xF4] = (0x1FF).to_bytes(4, "little")
    page[0x210] = 0x10  # IRR: vector 0x24
    assert vmm.give(vmm.vcpu, "KVM_SET_LAPIC", bytes(page)) == 0
    assert vmm.get("KVM_GET_LAPIC", "kvm_lapic_state").tobytes() == bytes(page)

    events = vmm.get("KVM_GET_VCPU_EVENTS", "kvm_vcpu_events")
    events["nmi.pending"], events["nmi.masked"], events["interrupt.shadow"] = 1, 1, 2
    events["exception.injected"], events["exception.nr"] = 1, 13
    events["exception.has_error_code"] = 1
    assert vmm.give(vmm.vcpu, "KVM_SET_VCPU_EVENTS", events.tobytes()) == 0
    assert vmm.get("KVM_GET_VCPU_EVENTS", "kvm_vcpu_events").tobytes() == events.tobytes()
    events["exception.nr"] = 32
    assert vmm.give(vmm.vcpu, "KVM_SET_VCPU_EVENTS", events.tobytes()) == errno("EINVAL")
    events["flags"] = 1 << 20
    assert vmm.give(vmm.vcpu, "KVM_SET_VCPU_EVENTS", events.tobytes()) == errno("EINVAL")

    halted = constant("KVM_MP_STATE_HALTED")
    assert vmm.give(vmm.vcpu, "KVM_SET_MP_STATE", halted.to_bytes(4, "little")) == 0
    assert int(vmm.get("KVM_GET_MP_STATE", "kvm_mp_state")["mp_state"]) == halted
    assert vmm.give(vmm.vcpu, "KVM_SET_MP_STATE", b"\x09\0\0\0") == errno("EINVAL")
    assert vmm.give(vmm.vcpu, "KVM_INTERRUPT", b"\0\1\0\0") == errno("EINVAL")
    assert vmm.give(vmm.vcpu, "KVM_INTERRUPT", b"\x20\0\0\0") == errno("ENXIO")
    assert vmm.ioctl(vmm.vcpu, "KVM_SET_TSC_KHZ", 5) == errno("EINVAL")
    assert vmm.ioctl(vmm.vcpu, "KVM_GET_TSC_KHZ") == int(vmm.kernel.S.config.tsc_khz)


@pytest.mark.parametrize("mode", ["emulated", "passthrough", "mediated"])
def test_a_port_is_the_vmms(mode):
    vmm = Vmm(mode)
    # in al, 0x71; out 0x80, al; mov dx, 0x3f8; out dx, eax
    vmm.load(b"\xe4\x71\xe6\x80\x66\xba\xf8\x03\xef")
    assert vmm.run() == 0
    run = vmm.kvm_run
    assert (int(run["exit_reason"]), int(run["io.direction"]), int(run["io.port"])) == (2, 0, 0x71)
    assert int(vmm.get("KVM_GET_REGS", "kvm_regs")["rip"]) == 0x1000  # not over yet
    assert int(vmm.kernel.S.vcpus[0].emulated_insns) == 0
    vmm.pio[0] = 0x5A
    assert vmm.run() == 0
    assert (int(run["io.direction"]), int(run["io.size"]), int(run["io.port"])) == (1, 1, 0x80)
    assert vmm.pio[0] == 0x5A
    # Nothing but the completion: how a VMM gets a state that it can save.
    run["immediate_exit"] = 1
    assert vmm.run() == errno("EINTR")
    assert int(vmm.get("KVM_GET_REGS", "kvm_regs")["rip"]) == 0x1004
    assert vmm.run() == errno("EINTR")
    run["immediate_exit"] = 0
    assert vmm.run() == 0
    assert (int(run["io.size"]), int(run["io.port"])) == (4, 0x3F8)
    assert int(vmm.kernel.S.vcpus[0].emulated_insns) == 2
    assert vmm.ioctl(vmm.vcpu, "KVM_RUN", 1) == errno("EINVAL")


def test_other_exits():
    vmm = Vmm(irqchip=False)
    vmm.load(b"\xf4")
    assert vmm.run() == 0
    assert int(vmm.kvm_run["exit_reason"]) == constant("KVM_EXIT_HLT")
    assert int(vmm.get("KVM_GET_REGS", "kvm_regs")["rip"]) == 0x1001
    vmm = Vmm()
    vmm.load(b"\x0f\x0b")  # UD2 without an IDT
    assert vmm.run() == 0
    assert int(vmm.kvm_run["exit_reason"]) == constant("KVM_EXIT_SHUTDOWN")
    vmm = Vmm()  # as after RESET: this machine has no real mode
    assert vmm.run() == 0
    assert int(vmm.kvm_run["exit_reason"]) == constant("KVM_EXIT_FAIL_ENTRY")
    assert int(vmm.kvm_run["fail_entry.hardware_entry_failure_reason"]) == 0x8000_0021


@pytest.mark.parametrize("mode", ["emulated", "passthrough", "mediated"])
def test_msr_filter(mode):
    vmm = Vmm(mode)
    row = STRUCTS["kvm_msr_filter"]
    bitmap = vmm.page(b"\xfe")  # all of the eight but the first

    def put(**values):
        given = row.new(flags=values.pop("default", 0))
        for name, value in {"flags": 3, "nmsrs": 8, "base": PMC0, "bitmap": bitmap, **values}.items():
            given["ranges"][0][name] = value
        return vmm.give(vmm.vm, "KVM_X86_SET_MSR_FILTER", given.tobytes())

    assert put(default=2) == errno("EINVAL")
    assert put(flags=4) == errno("EINVAL")
    assert put(nmsrs=0, default=1) == errno("EINVAL")  # nothing would be allowed
    assert put(nmsrs=0x600 * 8 + 1) == errno("EINVAL")
    assert put(bitmap=BAD) == errno("EFAULT")
    assert put() == 0
    cap = STRUCTS["kvm_enable_cap"].new(cap=constant("KVM_CAP_X86_USER_SPACE_MSR"))
    cap["args"][0] = 8
    assert vmm.give(vmm.vm, "KVM_ENABLE_CAP", cap.tobytes()) == errno("EINVAL")
    cap["args"][0] = 7
    assert vmm.give(vmm.vm, "KVM_ENABLE_CAP", cap.tobytes()) == 0
    # mov ecx, 0xc2; rdmsr; dec ecx; rdmsr; mov ecx, 0x5555; wrmsr; hlt
    vmm.load(b"\xb9\xc2\0\0\0\x0f\x32\xff\xc9\x0f\x32\xb9\x55\x55\0\0\x0f\x30\xe6\x80")
    assert vmm.run() == 0
    run = vmm.kvm_run
    assert int(run["exit_reason"]) == constant("KVM_EXIT_X86_RDMSR")
    assert (int(run["msr.index"]), int(run["msr.reason"])) == (PMC0, constant("KVM_MSR_EXIT_REASON_FILTER"))
    run["msr.data"] = 0x1_2345_6789
    assert vmm.run() == 0
    regs = vmm.get("KVM_GET_REGS", "kvm_regs")
    assert (int(regs["rax"]), int(regs["rdx"])) == (0x2345_6789, 1)
    assert int(run["exit_reason"]) == constant("KVM_EXIT_X86_WRMSR")
    assert int(run["msr.index"]) == 0x5555
    assert int(run["msr.data"]) == 0x1_2345_6789
    assert int(run["msr.reason"]) == constant("KVM_MSR_EXIT_REASON_UNKNOWN")
    run["msr.error"] = 1  # #GP without an IDT: a triple fault
    assert vmm.run() == 0
    assert int(run["exit_reason"]) == constant("KVM_EXIT_SHUTDOWN")


@pytest.mark.parametrize("mode", ["emulated", "passthrough", "mediated"])
def test_migration(mode):
    """All of GET goes to SET of a fresh VM in the order that the kernel wants; the guest goes on."""
    # mov ecx, 0x38f; mov eax, 1; xor edx, edx; wrmsr; in al, 0x71; nop * 5
    code = b"\xb9\x8f\3\0\0\xb8\1\0\0\0\x31\xd2\x0f\x30\xe4\x71" + b"\x90" * 5
    code += b"\x31\xc0\x0f\x30\xe6\x80"  # xor eax, eax; wrmsr; out 0x80, al

    def counted(migrate: bool) -> int:
        vmm = Vmm(mode)
        vmm.load(code)
        assert vmm.set((GLOBAL_CTRL, 0), (EVTSEL0, INSTRUCTIONS), (PMC0, 1000)) == 3
        assert vmm.run() == 0
        vmm.kvm_run["immediate_exit"] = 1
        assert vmm.run() == errno("EINTR")
        vmm.kvm_run["immediate_exit"] = 0
        if migrate:
            structs = {"REGS": "regs", "SREGS": "sregs", "LAPIC": "lapic_state",
                       "VCPU_EVENTS": "vcpu_events"}  # fmt: skip
            saved = {n: vmm.get(f"KVM_GET_{n}", f"kvm_{s}").tobytes() for n, s in structs.items()}
            indexes = [PERF_CAPABILITIES, EVTSEL0, PMC0, FIXED_CTR_CTRL, GLOBAL_STATUS, GLOBAL_CTRL]
            values = vmm.read(*indexes)
            memory = vmm.host.copy_from_user(vmm.ram, 0x2000)
            vmm = Vmm(mode)
            vmm.host.copy_to_user(vmm.ram, memory)
            assert vmm.set(*zip(indexes, values, strict=True)) == len(indexes)
            for name, data in saved.items():
                assert vmm.give(vmm.vcpu, f"KVM_SET_{name}", data) == 0
        assert vmm.run() == 0
        assert int(vmm.kvm_run["io.port"]) == 0x80
        return vmm.read(PMC0)[0]

    assert counted(migrate=True) == counted(migrate=False) > 1005


def test_a_vm_goes_with_its_last_file():
    vmm = Vmm()
    kernel = vmm.kernel
    at = kernel.call("mmap", 0, 3 * 4096, 3, constant("MAP_SHARED"), vmm.vcpu, 0)
    assert at > 0
    assert kernel.call("mmap", 0, 4 * 4096, 3, 1, vmm.vcpu, 0) == errno("EINVAL")
    assert kernel.call("mmap", 0, 4096, 3, 1, vmm.vm, 0) == errno("ENODEV")
    for fd in (vmm.vm, vmm.vcpu):
        assert int(kernel.S.vms[0].used) == 1
        assert kernel.call("close", fd) == 0
    assert int(kernel.S.vms[0].used) == 1  # struct kvm_run is still mapped
    assert kernel.call("munmap", at, 3 * 4096) == 0
    assert int(kernel.S.vms[0].used) == int(kernel.S.vcpus[0].used) == 0
    assert vmm.ioctl(vmm.kvm, "KVM_CREATE_VM") > 0


def test_closing_everything_does_not_stop_a_guest():
    """KVM_RUN holds the file of its vCPU: the VM goes when the guest has come out."""
    vmm = Vmm()
    kernel = vmm.kernel
    vmm.load(b"\xe4\x71")  # in al, 0x71
    assert vmm.ioctl(vmm.vcpu, "KVM_RUN") == 0
    task = kernel.S.tasks[kernel.host.task_row]
    assert int(task.vcpu) == 0
    for fd in (vmm.vm, vmm.vcpu):
        assert kernel.call("close", fd) == 0
    pages = kernel.pages_in_use()
    assert int(kernel.S.vms[0].used) == int(kernel.S.vcpus[0].used) == 1
    leave_run(kernel.host, task)
    assert int(kernel.S.vms[0].used) == int(kernel.S.vcpus[0].used) == 0
    assert int(task.vcpu) == -1
    assert kernel.pages_in_use() == pages - 6  # VMCS and bitmap and lists, struct kvm_run and the rest


@pytest.mark.parametrize("mode", ["emulated", "passthrough", "mediated"])
@pytest.mark.parametrize(
    ("code", "reason"), [(b"\xf4", "HLT"), (b"\xe6\xf4", "IO"), (b"\x0f\x30", "SHUTDOWN")]
)
def test_a_guest_without_cpuid_leaves_for_the_same(mode, code, reason):
    """HLT, OUT and WRMSR never reach the processor, whatever the VMM forgot."""
    vmm = Vmm(mode, irqchip=False, cpuid=False)
    vmm.load(b"\xb9\x8f\x03\x00\x00" + code)  # mov ecx, IA32_PERF_GLOBAL_CTRL; ...
    before = int(vmm.kernel.S.cores[0].pmu.global_ctrl)
    assert vmm.run() == 0
    assert int(vmm.kvm_run["exit_reason"]) == constant(f"KVM_EXIT_{reason}")
    assert int(vmm.kernel.S.cores[0].stop) == 0
    assert int(vmm.kernel.S.cores[0].pmu.global_ctrl) == before


def test_a_passthrough_pmu_without_a_local_apic():
    """Version 1 of the series did not ask for one: the guest has its counters, and no PMI ever."""
    vmm = Vmm("passthrough", irqchip=False)
    vmm.load(b"\xb9\x8f\x03\x00\x00\x0f\x32\xf4")  # mov ecx, IA32_PERF_GLOBAL_CTRL; rdmsr; hlt
    assert vmm.run() == 0
    assert int(vmm.kvm_run["exit_reason"]) == constant("KVM_EXIT_HLT")
    assert int(vmm.get("KVM_GET_REGS", "kvm_regs")["rax"]) == 0xFF
    assert int(vmm.kernel.S.vcpus[0].pmu.loaded_lvtpc) == 0xF5


def test_memory_of_two_slots_is_free_when_the_vmm_unmaps_it():
    vmm = Vmm()
    kernel = vmm.kernel
    at = kernel.call("mmap", 0, 4096, 3, 0x22, -1, 0)
    page = next(int(v.hpa) for v in kernel.host.mm.vmas if int(v.start) == at) // 4096
    for slot in (1, 2):
        assert vmm.region(slot=slot, gpa=slot * 2 * RAM, size=4096, at=at) == 0
    assert kernel.call("munmap", at, 4096) == 0
    assert int(kernel.host.mem_map[page]) != IN_USE
    vmm.load(READ_EAX + (2 * RAM).to_bytes(4, "little") + b"\xf4")
    assert vmm.run() == errno("EFAULT")


ANONYMOUS = constant("MAP_PRIVATE") | constant("MAP_ANONYMOUS") | constant("MAP_FIXED")
THERE = 0x2000_0000  # free addresses of the VMM
SLOT = 2 * RAM


def touch(vmm: Vmm, code: bytes) -> int:
    """What the guest has in EAX at its HLT, or the errno of KVM_RUN."""
    vmm.load(code + b"\xf4")
    result = vmm.run()
    return result if result else int(vmm.get("KVM_GET_REGS", "kvm_regs")["rax"])


def reads(vmm: Vmm, page: int) -> int:
    return touch(vmm, READ_EAX + (SLOT + page * 4096).to_bytes(4, "little"))


def writes(vmm: Vmm, page: int) -> int:
    return touch(vmm, b"\x31\xc0" + WRITE_EAX + (SLOT + page * 4096 + 8).to_bytes(4, "little"))


def test_a_slot_shows_what_its_vmm_has_there_now():
    """Pieces of two mappings side by side, a hole, what may not be written, and the same after a change."""
    vmm = Vmm(irqchip=False)
    kernel = vmm.kernel
    for k, prot in ((2, 1), (0, 3), (1, 3)):  # no page follows the one before in physical memory
        assert kernel.call("mmap", THERE + k * 4096, 4096, 3, ANONYMOUS, -1, 0) > 0
        vmm.host.put_user(THERE + k * 4096, 0x1111 * (k + 1), 4)
        assert kernel.call("mprotect", THERE + k * 4096, 4096, prot) == 0
    assert vmm.region(slot=1, gpa=SLOT, size=4 * 4096, at=THERE) == 0
    assert [reads(vmm, k) for k in range(4)] == [0x1111, 0x2222, 0x3333, errno("EFAULT")]
    assert [writes(vmm, k) for k in range(4)] == [0, 0, errno("EFAULT"), errno("EFAULT")]
    assert kernel.call("mmap", THERE + 3 * 4096, 4096, 3, ANONYMOUS, -1, 0) > 0
    vmm.host.put_user(THERE + 3 * 4096, 0x4444, 4)
    assert kernel.call("munmap", THERE, 4096) == 0
    assert kernel.call("mprotect", THERE + 4096, 4096, 0) == 0
    assert kernel.call("mprotect", THERE + 2 * 4096, 4096, 3) == 0
    assert [reads(vmm, k) for k in range(4)] == [errno("EFAULT"), errno("EFAULT"), 0x3333, 0x4444]
    assert writes(vmm, 2) == 0


def test_memory_that_a_guest_has_touched_goes_with_its_mapping():
    """What a core remembers of a translation ends with the mapping: the next owner's data is not seen."""
    vmm = Vmm(irqchip=False)
    kernel = vmm.kernel
    assert kernel.call("mmap", THERE, 4096, 3, ANONYMOUS, -1, 0) > 0
    assert vmm.region(slot=1, gpa=SLOT, size=4096, at=THERE) == 0
    assert reads(vmm, 0) == 0
    assert kernel.call("munmap", THERE, 4096) == 0
    other = kernel.call("mmap", 0, 4096, 3, constant("MAP_PRIVATE") | constant("MAP_ANONYMOUS"), -1, 0)
    vmm.host.put_user(other, 0x5EC2E7, 4)  # on the page that has just become free
    assert reads(vmm, 0) == errno("EFAULT")
    assert kernel.call("mmap", THERE, 4096, 3, ANONYMOUS, -1, 0) > 0
    assert reads(vmm, 0) == 0


IDT = """
    lgdt [0x1f00]
    mov word ptr [0x3000], 0xfff
    mov qword ptr [0x3002], {idt:#x}
    lidt [0x3000]
"""
GDT = (39).to_bytes(2, "little") + (0x1F10).to_bytes(8, "little") + bytes(6)
GDT += b"".join(n.to_bytes(8, "little") for n in (0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF))
GATE = 0x0000_8E00_0008_5000  # to 0x5000


@pytest.mark.parametrize("where", ["code", "table", "idt", "stack"])
def test_efault_whatever_the_guest_wanted_there(where):
    """Fetches, walks and deliveries leave the guest too, and go on once the VMM has put memory there."""
    vmm = Vmm(irqchip=False)
    assert vmm.region(slot=1, gpa=SLOT, size=4 * 4096, at=THERE) == 0
    text = {
        "code": f"mov eax, {SLOT:#x}\n jmp rax",
        "table": f"mov eax, {SLOT:#x}\n mov cr3, rax",
        "idt": IDT.format(idt=SLOT) + "ud2",
        "stack": IDT.format(idt=0x4000) + f"mov esp, {SLOT + 4096:#x}\n ud2",
    }[where]
    at = vmm.ram
    vmm.host.copy_to_user(at + 0x1F00, GDT)
    vmm.host.put_user(at + 0x4060, GATE, 8)
    vmm.host.put_user(at + 0x5000, 0xF4, 1)
    vmm.load(bytes(assemble(".intel_syntax noprefix\n" + text, "guest.s").segments[0].data))
    assert vmm.run() == errno("EFAULT")
    assert vmm.run() == errno("EFAULT")  # nothing has changed, in the guest neither
    assert vmm.kernel.call("mmap", THERE, 4 * 4096, 3, ANONYMOUS, -1, 0) > 0
    if where == "code":
        vmm.host.put_user(THERE, 0xF4, 1)
    if where == "idt":
        vmm.host.put_user(THERE + 0x60, GATE, 8)
    assert vmm.run() == 0
    reason = "SHUTDOWN" if where == "table" else "HLT"
    assert int(vmm.kvm_run["exit_reason"]) == constant(f"KVM_EXIT_{reason}")
    if where in ("idt", "stack"):
        assert int(vmm.get("KVM_GET_REGS", "kvm_regs")["rip"]) == 0x5001


def test_an_interrupt_that_met_no_memory_comes_again():
    """vmx_complete_interrupts(): an NMI whose frame has no place is injected at the next entry."""
    vmm = Vmm(irqchip=False)
    assert vmm.region(slot=1, gpa=SLOT, size=4096, at=THERE) == 0
    vmm.host.copy_to_user(vmm.ram + 0x1F00, GDT)
    vmm.host.put_user(vmm.ram + 0x4020, GATE, 8)
    vmm.host.put_user(vmm.ram + 0x5000, 0xF4, 1)
    text = IDT.format(idt=0x4000) + f"mov esp, {SLOT + 4096:#x}\n hlt"
    vmm.load(bytes(assemble(".intel_syntax noprefix\n" + text, "guest.s").segments[0].data))
    assert vmm.run() == 0
    assert vmm.ioctl(vmm.vcpu, "KVM_NMI") == 0
    assert [vmm.run(), vmm.run()] == [errno("EFAULT")] * 2
    assert vmm.kernel.call("mmap", THERE, 4096, 3, ANONYMOUS, -1, 0) > 0
    assert vmm.run() == 0
    assert int(vmm.get("KVM_GET_REGS", "kvm_regs")["rip"]) == 0x5001
    events = vmm.get("KVM_GET_VCPU_EVENTS", "kvm_vcpu_events")
    assert (int(events["nmi.pending"]), int(events["nmi.masked"])) == (0, 1)


def test_extended_control_registers():
    vmm = Vmm()
    xcrs = vmm.get("KVM_GET_XCRS", "kvm_xcrs")
    assert (int(xcrs["nr_xcrs"]), int(xcrs["xcrs"][0]["xcr"]), int(xcrs["xcrs"][0]["value"])) == (1, 0, 1)
    for value, result in ((3, 0), (1, 0), (2, "EINVAL"), (0, "EINVAL"), (7, "EINVAL"), (3, 0)):
        xcrs["xcrs"][0]["value"] = value
        wanted = errno(result) if result else 0
        assert vmm.give(vmm.vcpu, "KVM_SET_XCRS", xcrs.tobytes()) == wanted
    assert int(vmm.get("KVM_GET_XCRS", "kvm_xcrs")["xcrs"][0]["value"]) == 3
    xcrs["flags"] = 1
    assert vmm.give(vmm.vcpu, "KVM_SET_XCRS", xcrs.tobytes()) == errno("EINVAL")
    xcrs["flags"], xcrs["nr_xcrs"] = 0, 17
    assert vmm.give(vmm.vcpu, "KVM_SET_XCRS", xcrs.tobytes()) == errno("EINVAL")
    assert vmm.ioctl(vmm.vcpu, "KVM_GET_XCRS", BAD) == errno("EFAULT")
    assert vmm.ioctl(vmm.vcpu, "KVM_SET_XCRS", BAD) == errno("EFAULT")


def test_a_guest_without_xsave_has_no_xcr0_to_set():
    """CR4.OSXSAVE needs the bit in the guest's CPUID, what XCR0 may hold stands in its leaf 0DH."""
    vmm = Vmm(cpuid=False)
    vmm.long_mode()
    sregs = vmm.get("KVM_GET_SREGS", "kvm_sregs")
    sregs["cr4"] |= 1 << 18
    xcrs = vmm.get("KVM_GET_XCRS", "kvm_xcrs")
    xcrs["xcrs"][0]["value"] = 3
    assert vmm.give(vmm.vcpu, "KVM_SET_XCRS", xcrs.tobytes()) == errno("EINVAL")
    leaf = STRUCTS["kvm_cpuid_entry2"].new(function=1).tobytes()
    without = STRUCTS["kvm_cpuid2"].new(nent=1).tobytes() + leaf
    assert vmm.give(vmm.vcpu, "KVM_SET_CPUID2", without) == 0
    assert vmm.give(vmm.vcpu, "KVM_SET_SREGS", sregs.tobytes()) == errno("EINVAL")
    at = vmm.supported()
    assert vmm.ioctl(vmm.vcpu, "KVM_SET_CPUID2", at) == 0
    assert vmm.give(vmm.vcpu, "KVM_SET_SREGS", sregs.tobytes()) == 0
    assert vmm.give(vmm.vcpu, "KVM_SET_XCRS", xcrs.tobytes()) == 0
    leaves = vmm.leaves(at)
    assert [int(leaves[0xD][r]) for r in ("flags", "eax", "ebx", "ecx")] == [1, 3, 576, 576]
    assert int(leaves[1]["ecx"]) >> 26 & 3 == 1
    assert vmm.ioctl(vmm.vcpu, "KVM_GET_CPUID2", at) == 0
    assert int(vmm.leaves(at)[1]["ecx"]) >> 26 & 3 == 3
