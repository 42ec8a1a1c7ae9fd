"""perf_create_mediated_pmu() as programs of the host meet it: EBUSY, EOPNOTSUPP, and when they are over."""

from __future__ import annotations

import pytest

from tests.linux.syscalls.kernel import Kernel
from tests.linux.syscalls.test_kvm import Vmm, errno
from tests.linux.syscalls.test_kvm_vcpu import code, registers
from tests.linux.syscalls.test_perf import HARDWARE, SOFTWARE, UNCORE, event
from vpmu_emu.linux.kvm.vmx.vmcs import vmcs_read
from vpmu_emu.linux.perf.clocks import UNCORE_CLOCKTICKS
from vpmu_emu.linux.printk import log_report
from vpmu_emu.linux.watchdog import lockup_detector_init
from vpmu_emu.tables.linux import STRUCTS, constant
from vpmu_emu.tables.vmcs import control_bit

pytestmark = pytest.mark.uncompiled

NO_GUEST = constant("PERF_ATTR_EXCLUDE_GUEST")
GLOBAL_CTRL, PERF_CAPABILITIES = 0x38F, 0x345


class Bare(Vmm):
    """/dev/kvm is open and there is no VM yet."""

    def __init__(self, mode: str = "mediated", cpu: str = "spr") -> None:
        self.kernel = Kernel(mode=mode, cpu=cpu).start()
        self.kernel.S.config.fixed_cap = 3
        self.room, self.left = self.kernel.page(size=0x10000), 0x10000
        path = self.page(b"/dev/kvm\0")
        self.kvm = self.kernel.call("openat", -100, path, constant("O_RDWR"), 0)

    def vm_with_apic(self) -> int:
        vm = self.ioctl(self.kvm, "KVM_CREATE_VM")
        assert vm > 0
        assert self.ioctl(vm, "KVM_CREATE_IRQCHIP") == 0
        return vm


@pytest.mark.parametrize(("pid", "cpu"), [(0, -1), (-1, 0), (0, 0)])
@pytest.mark.parametrize("kind", [HARDWARE, 4])
def test_an_event_that_counts_in_guests_keeps_the_first_vcpu_from_being_made(pid, cpu, kind):
    vmm = Bare()
    fd = event(vmm.kernel, type=kind, config=1 if kind == HARDWARE else 0xC0, pid=pid, cpu=cpu)
    assert fd > 0
    vm = vmm.vm_with_apic()  # KVM_CREATE_VM itself succeeds
    assert [vmm.ioctl(vm, "KVM_CREATE_VCPU", k) for k in (0, 0, 1)] == [errno("EBUSY")] * 3
    said = [line["text"] for line in log_report(vmm.kernel.S)]
    assert len(said) == 3
    assert all("mediated" in text and "nmi_watchdog" in text for text in said)
    assert vmm.kernel.call("close", fd) == 0
    assert vmm.ioctl(vm, "KVM_CREATE_VCPU", 0) > 0


@pytest.mark.parametrize(
    "attrs",
    [{"type": HARDWARE, "flags": NO_GUEST}, {"type": SOFTWARE, "config": 0},
     {"type": UNCORE, "config": int(UNCORE_CLOCKTICKS), "pid": -1, "cpu": 0}],
)  # fmt: skip
def test_events_that_leave_guests_out_and_other_pmus_are_none_of_its_business(attrs):
    vmm = Bare()
    first = event(vmm.kernel, **attrs)
    assert first > 0
    vm = vmm.vm_with_apic()
    assert vmm.ioctl(vm, "KVM_CREATE_VCPU", 0) > 0
    assert event(vmm.kernel, **attrs) > 0


def test_the_nmi_watchdog_counts_in_guests():
    vmm = Bare()
    lockup_detector_init(vmm.kernel.S, "nmi", 10)
    vm = vmm.vm_with_apic()
    assert vmm.ioctl(vm, "KVM_CREATE_VCPU", 0) == errno("EBUSY")


def test_no_such_event_is_made_until_the_last_vm_is_gone():
    vmm = Bare()
    kernel = vmm.kernel
    one, two = vmm.vm_with_apic(), vmm.vm_with_apic()
    fd = event(kernel, type=HARDWARE)  # VMs alone do not matter
    assert fd > 0
    assert kernel.call("close", fd) == 0
    first, second = (vmm.ioctl(vm, "KVM_CREATE_VCPU", 0) for vm in (one, two))
    assert event(kernel, type=HARDWARE) == errno("EOPNOTSUPP")
    assert event(kernel, type=HARDWARE, pid=-1, cpu=0) == errno("EOPNOTSUPP")
    assert event(kernel, type=HARDWARE, flags=NO_GUEST) > 0
    assert kernel.call("close", one) == kernel.call("close", first) == 0
    assert event(kernel, type=HARDWARE) == errno("EOPNOTSUPP")
    assert kernel.call("close", two) == 0
    assert event(kernel, type=HARDWARE) == errno("EOPNOTSUPP")  # its vCPU holds the VM
    assert kernel.call("close", second) == 0
    assert event(kernel, type=HARDWARE) > 0
    assert vmm.ioctl(vmm.vm_with_apic(), "KVM_CREATE_VCPU", 0) == errno("EBUSY")


def test_a_second_vm_joins_whatever_there_is():
    """perf_create_mediated_pmu() counts VMs; only the first has to look."""
    vmm = Bare()
    one, two = vmm.vm_with_apic(), vmm.vm_with_apic()
    assert vmm.ioctl(one, "KVM_CREATE_VCPU", 0) > 0
    assert vmm.ioctl(two, "KVM_CREATE_VCPU", 0) > 0


def test_without_an_apic_in_the_kernel_the_vm_silently_has_no_pmu():
    vmm = Bare()
    assert event(vmm.kernel, type=HARDWARE) > 0
    vm = vmm.ioctl(vmm.kvm, "KVM_CREATE_VM")
    vmm.vcpu = vmm.ioctl(vm, "KVM_CREATE_VCPU", 0)
    assert vmm.vcpu > 0
    assert vmm.ioctl(vmm.vcpu, "KVM_SET_CPUID2", vmm.supported()) == 0
    assert int(vmm.kernel.S.vcpus[0].pmu.version) == 0
    assert vmm.set((GLOBAL_CTRL, 1)) == 0
    assert event(vmm.kernel, type=HARDWARE) > 0


def test_a_vm_whose_pmu_is_off_asks_nobody():
    vmm = Bare()
    assert event(vmm.kernel, type=HARDWARE) > 0
    vm = vmm.vm_with_apic()
    cap = STRUCTS["kvm_enable_cap"].new(cap=constant("KVM_CAP_PMU_CAPABILITY"))
    cap["args"][0] = constant("KVM_PMU_CAP_DISABLE")
    assert vmm.give(vm, "KVM_ENABLE_CAP", cap.tobytes()) == 0
    assert vmm.ioctl(vm, "KVM_CREATE_VCPU", 0) > 0


def test_what_perf_has_granted_is_not_taken_back():
    """KVM_CAP_PMU_CAPABILITY is refused once the VM counts, though its vCPU could not be made."""
    vmm = Bare()
    vm = vmm.vm_with_apic()
    for row in vmm.kernel.S.files:  # no room for one more file
        if not row.kind:
            row.kind, row.mm, row.fd = 1, 0, 10_000
    assert vmm.ioctl(vm, "KVM_CREATE_VCPU", 0) < 0
    assert int(vmm.kernel.S.vms[0].created_mediated_pmu) == 1
    cap = STRUCTS["kvm_enable_cap"].new(cap=constant("KVM_CAP_PMU_CAPABILITY"))
    assert vmm.give(vm, "KVM_ENABLE_CAP", cap.tobytes()) == errno("EINVAL")


@pytest.mark.parametrize("mode", ["none", "emulated", "passthrough"])
def test_other_vpmus_leave_perf_alone(mode):
    vmm = Bare(mode)
    assert event(vmm.kernel, type=HARDWARE) > 0
    vm = vmm.vm_with_apic()
    assert vmm.ioctl(vm, "KVM_CREATE_VCPU", 0) > 0
    assert event(vmm.kernel, type=HARDWARE) > 0


# --- what exits, again after every change ---------------------------------------------------------------
def passes(vmm: Vmm, index: int) -> bool:
    at = int(vmm.kernel.S.vcpus[0].msr_bitmap)
    page = bytes(vmm.kernel.M[at : at + 4096])
    return not any(page[half + index // 8] >> index % 8 & 1 for half in (0, 0x800))


def rdpmc_exits(vmm: Vmm) -> bool:
    control = vmcs_read(vmm.kernel.M, vmm.kernel.S.vcpus[0], "CPU_BASED_VM_EXEC_CONTROL")
    return bool(control >> control_bit("CPU_BASED_RDPMC_EXITING") & 1)


def shape(vmm: Vmm, gp: int, fixed: int) -> int:
    """KVM_SET_CPUID2 of what is supported, with so many counters."""
    at = vmm.supported()
    leaves = {n: entry.copy() for n, entry in vmm.leaves(at).items()}
    leaf = leaves[0xA]
    leaf["eax"] = int(leaf["eax"]) & ~0xFF00 | gp << 8
    leaf["edx"] = int(leaf["edx"]) & ~0x1F | fixed
    data = vmm.host.copy_from_user(at, 8) + b"".join(e.tobytes() for e in leaves.values())
    return vmm.give(vmm.vcpu, "KVM_SET_CPUID2", data)


def test_a_second_cpuid_decides_again():
    vmm = Vmm("mediated", cpu="skx")
    for gp, fixed, whole in ((4, 3, True), (3, 3, False), (4, 2, False), (4, 3, True)):
        assert shape(vmm, gp, fixed) == 0
        assert [passes(vmm, 0xC1 + n) for n in range(4)] == [n < gp for n in range(4)]
        assert [passes(vmm, 0x309 + n) for n in range(3)] == [n < fixed for n in range(3)]
        assert [passes(vmm, index) for index in (0x38E, GLOBAL_CTRL, 0x390)] == [whole] * 3
        assert rdpmc_exits(vmm) != whole
        assert not passes(vmm, 0x186)
        assert not passes(vmm, 0x38D)


def test_perf_capabilities_later_decide_on_full_width_addresses():
    vmm = Vmm("mediated", cpu="skx")
    assert passes(vmm, 0x4C1)
    assert vmm.set((PERF_CAPABILITIES, 0)) == 1
    assert not passes(vmm, 0x4C1)
    assert passes(vmm, 0xC1)
    assert vmm.set((PERF_CAPABILITIES, 0x2000)) == 1
    assert passes(vmm, 0x4C1)


def test_lbr_and_pebs_leave_perf_capabilities():
    for cpu in ("spr", "skx", "icx"):
        vmm = Vmm("mediated", cpu=cpu)
        assert vmm.read(PERF_CAPABILITIES) == [0x2000]
        assert vmm.set((PERF_CAPABILITIES, 0x2005)) == 0
        assert vmm.set((PERF_CAPABILITIES, 0x2400)) == 0
        _, _, ecx, edx = (int(vmm.leaves(vmm.supported())[1][r]) for r in ("eax", "ebx", "ecx", "edx"))
        assert not edx & 1 << 21
        assert not ecx & 1 << 2


def test_an_msr_filter_has_what_it_denies_exit():
    vmm = Vmm("mediated", cpu="skx")
    given = STRUCTS["kvm_msr_filter"].new(flags=0)
    bitmap = vmm.page(b"\0" * 8)
    for name, value in {"flags": 3, "nmsrs": 3, "base": 0x38E, "bitmap": bitmap}.items():
        given["ranges"][0][name] = value
    assert vmm.give(vmm.vm, "KVM_X86_SET_MSR_FILTER", given.tobytes()) == 0
    assert [passes(vmm, index) for index in (0x38E, 0x38F, 0x390, 0x309)] == [False, False, False, True]
    assert not rdpmc_exits(vmm)  # no MSR filter holds for it
    vmm.load(code("mov ecx, 0x38f\nrdmsr\nout 0x80, al"))
    assert vmm.run() == 0
    assert int(vmm.kvm_run["exit_reason"]) == constant("KVM_EXIT_SHUTDOWN")


# --- what the VMM writes --------------------------------------------------------------------------------
@pytest.mark.parametrize("cpu", ["spr", "skx"])
def test_global_ctrl_of_the_vmm_is_in_the_vmcs_at_once(cpu):
    vmm = Vmm("mediated", cpu=cpu)
    vcpu, name = vmm.kernel.S.vcpus[0], "GUEST_IA32_PERF_GLOBAL_CTRL"
    gp = 0xFF if cpu == "spr" else 0xF
    assert vmcs_read(vmm.kernel.M, vcpu, name) == gp  # RESET
    assert vmm.set((GLOBAL_CTRL, 5)) == 1
    assert vmcs_read(vmm.kernel.M, vcpu, name) == 5
    vmm.load(code("mov ecx, 0x38f\nrdmsr\nmov edi, eax\nout 0x80, al"))
    assert vmm.run() == 0
    assert int(registers(vmm)["rdi"]) == 5
    assert vmm.read(GLOBAL_CTRL) == [5]


def test_a_pmi_that_only_waits_as_a_request_and_the_vmms_counters():
    vmm = Vmm("mediated")
    assert vmm.set((GLOBAL_CTRL, 0), (0x186, 0x5300C0), (0xC1, (1 << 48) - 1)) == 3
    assert vmm.read(0x186, 0xC1, 0x38E) == [0x5300C0, (1 << 48) - 1, 0]
    vmm.load(code("cpuid\nout 0x80, al"))
    assert vmm.run() == 0
    assert vmm.read(0xC1, 0x38E) == [(1 << 48) - 1, 0]  # GLOBAL_CTRL is off
    assert vmm.set((GLOBAL_CTRL, 1)) == 1
    vmm.load(code("cpuid\nout 0x80, al"))
    assert vmm.run() == 0
    # OUT of the first run is over with KVM_SET_REGS; CPUID wraps, OUT counts when it is finished
    assert vmm.read(0x38E) == [1]
