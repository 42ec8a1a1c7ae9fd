"""What the VMMs of public test suites ask of /dev/kvm between their runs, and what must be refused.

The rows of KVM selftests msrs_test.c, userspace_msr_exit_test.c, vmx_pmu_caps_test.c and of
pmu_event_filter_test.c, and of their library in every VM; the guest's side is in `guests/conformance`.
"""

from __future__ import annotations

import pytest

from tests.linux.syscalls.test_kvm import Vmm, errno
from tests.linux.syscalls.test_kvm_vcpu import MODES, change_events, code, events, registers
from vpmu_emu.machine.msr_access import cpuid_answer
from vpmu_emu.tables.linux import STRUCTS, constant

pytestmark = pytest.mark.uncompiled

EVERY_MODE = pytest.mark.parametrize("mode", ["none", "emulated", "passthrough", "mediated"])
U64_MAX = (1 << 64) - 1
CANONICAL, NONCANONICAL = 0x1234_5678_9000, 0xAAAA_0000_0000_0000
SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP, PAT, POWER_CTL = 0x174, 0x175, 0x176, 0x277, 0x1FC
TSC_AUX, FMASK, APIC_BASE = 0xC000_0103, 0xC000_0084, 0x1B
ADDRESSES = (0xC000_0100, 0xC000_0101, 0xC000_0102, 0xC000_0082, 0xC000_0083)


def _guest(vmm: Vmm, text: str) -> None:
    """Run a guest up to its OUT."""
    vmm.load(code(text.replace("; ", "\n")))
    assert vmm.run() == 0
    assert int(vmm.kvm_run["exit_reason"]) == constant("KVM_EXIT_IO"), int(vmm.kvm_run["exit_reason"])


# --- msrs_test.c ------------------------------------------------------------------------------------------
@EVERY_MODE
@pytest.mark.parametrize(
    ("index", "reset", "value"),
    [(PAT, 0x0007_0406_0007_0406, 0x0707_0707), (TSC_AUX, 0, 0x1234_5678), (SYSENTER_CS, 0, 0x1234),
     (SYSENTER_ESP, 0, CANONICAL), (SYSENTER_EIP, 0, CANONICAL), (FMASK, 0, 0xFFFF_FFFF),
     (0x1A0, 0x1800, 0x1801), (POWER_CTL, 0, 0x1234), *((index, 0, CANONICAL) for index in ADDRESSES)],
)  # fmt: skip
def test_an_msr_keeps_what_guest_and_vmm_write(mode, index, reset, value):
    vmm = Vmm(mode)
    assert vmm.read(index) == [reset]
    high, low = divmod(value, 1 << 32)
    _guest(vmm, f"mov ecx, {index}; mov eax, {low}; mov edx, {high}; wrmsr; rdmsr; out 0x80, al")
    assert vmm.read(index) == [value]
    found = registers(vmm)
    assert (int(found["rax"]), int(found["rdx"])) == (low, high)
    assert vmm.set((index, reset)) == 1
    assert vmm.read(index) == [reset]


@pytest.mark.parametrize("index", ADDRESSES)
def test_an_address_that_is_not_canonical_is_refused(index):
    vmm = Vmm()
    assert vmm.set((index, NONCANONICAL)) == 0
    assert vmm.read(index) == [0]


def test_sysenter_of_the_vmm_is_made_canonical():
    vmm = Vmm()
    for index in (SYSENTER_ESP, SYSENTER_EIP):
        assert vmm.set((index, 0x0000_8000_0000_0000)) == 1
        assert vmm.read(index) == [0xFFFF_8000_0000_0000]
    assert vmm.set((SYSENTER_CS, 0x5_0000_1234)) == 1
    assert vmm.read(SYSENTER_CS) == [0x1234]


@pytest.mark.parametrize("byte", range(8))
@pytest.mark.parametrize("kind", [2, 3, 8, 0x10, 0xFF])
def test_memory_types_that_are_none(byte, kind):
    vmm = Vmm()
    assert vmm.set((PAT, kind << 8 * byte)) == 0
    assert vmm.read(PAT) == [0x0007_0406_0007_0406]


def _without(vmm: Vmm, leaf: int, register: str, bit: int) -> None:
    at = vmm.supported()
    row, entry = STRUCTS["kvm_cpuid2"], STRUCTS["kvm_cpuid_entry2"]
    for n, each in enumerate(vmm.leaves(at).values()):
        if int(each["function"]) == leaf:
            each = each.copy()
            each[register] = int(each[register]) & ~(1 << bit)
            vmm.host.copy_to_user(at + row.size + entry.size * n, each.tobytes())
    assert vmm.ioctl(vmm.vcpu, "KVM_SET_CPUID2", at) == 0


def test_tsc_aux_needs_rdtscp():
    vmm = Vmm(cpuid=False)
    _without(vmm, 0x8000_0001, "edx", 27)
    assert vmm.read(TSC_AUX) == [0]  # in the list, so the VMM may ask
    assert vmm.set((TSC_AUX, 0)) == 1
    assert vmm.set((TSC_AUX, 1)) == 0
    vmm.load(code(f"mov ecx, {TSC_AUX}\nrdmsr\n"))
    assert vmm.run() == 0
    assert int(vmm.kvm_run["exit_reason"]) == constant("KVM_EXIT_SHUTDOWN")  # #GP without an IDT


def test_x2apic_mode_needs_its_cpuid():
    vmm = Vmm(cpuid=False)
    _without(vmm, 1, "ecx", 21)
    assert vmm.set((APIC_BASE, 0xFEE0_0D00)) == 0
    assert vmm.set((APIC_BASE, 0xFEE0_0900)) == 1


@pytest.mark.parametrize("index", [0x6A0, 0x6A2, 0x6A4, 0x6A5, 0x6A6, 0x6A7, 0x6A8])
def test_without_shadow_stacks_and_ibt_there_is_no_cet(index):
    vmm = Vmm()
    assert vmm.msrs("KVM_GET_MSRS", [(index, 0)])[0] == 0
    assert vmm.set((index, 0)) == 0


def test_the_list_of_registers_is_empty():
    vmm = Vmm()
    at = vmm.page((8).to_bytes(8, "little"))
    assert vmm.ioctl(vmm.vcpu, "KVM_GET_REG_LIST", at) == 0
    assert vmm.host.get_user(at, 8) == 0
    old = Vmm("passthrough")
    assert old.ioctl(old.vcpu, "KVM_GET_REG_LIST", at) == errno("EINVAL")


# --- hypercalls -------------------------------------------------------------------------------------------
def _hypercall(vmm: Vmm, nr: int, *args: int) -> int:
    values = zip(("rbx", "rcx", "rdx", "rsi"), args, strict=False)
    text = f"mov eax, {nr}; " + "".join(f"movabs {name}, {value}; " for name, value in values)
    _guest(vmm, f"{text}vmcall; out 0x80, al")
    found = int(registers(vmm)["rax"])
    return found - (1 << 64 if found >> 63 else 0)


def _enable(vmm: Vmm, fd: int, name: str, value: int) -> int:
    cap = STRUCTS["kvm_enable_cap"].new(cap=constant(f"KVM_CAP_{name}"))
    cap["args"][0] = value
    return vmm.give(fd, "KVM_ENABLE_CAP", cap.tobytes())


def _software_enable(vmm: Vmm) -> None:
    page = bytearray(vmm.get("KVM_GET_LAPIC", "kvm_lapic_state").tobytes())
    page[0xF0:0xF4] = (0x1FF).to_bytes(4, "little")
    assert vmm.give(vmm.vcpu, "KVM_SET_LAPIC", bytes(page)) == 0


@EVERY_MODE
@pytest.mark.parametrize(
    ("args", "answer"),
    [((1, 0, 0, 0xF1), 1), ((0xFFFF_FFFF, 0, 0xFFFF_FFFF, 0), 0), ((0, 0, 0, 0xF1), 0),
     ((6, 0, 0, 0xF1), 0),
     ((1 << 63, 0, 0, 0xF1), 0), ((0, 2, 0xFFFF_FFC1, 0xF1), 0), ((0, 1, 0xFFFF_FFC0, 0xF1), 1),
     ((1, 0, 0, 0x8F1), -22), ((1, 0, 0, 0x400F1), -22), ((1, 0, 0, 0x200), 0)],
)  # fmt: skip
def test_ipis_by_hypercall_count_who_takes_them(mode, args, answer):
    vmm = Vmm(mode)
    _software_enable(vmm)
    assert _hypercall(vmm, constant("KVM_HC_SEND_IPI"), *args) == answer
    page = vmm.get("KVM_GET_LAPIC", "kvm_lapic_state").tobytes()
    requested = int.from_bytes(page[0x270:0x274], "little")
    assert requested == (1 << 17 if answer == 1 and args[3] == 0xF1 else 0)


def test_an_apic_that_is_off_takes_none():
    vmm = Vmm()
    assert _hypercall(vmm, constant("KVM_HC_SEND_IPI"), 1, 0, 0, 0xF1) == 0
    none = Vmm(irqchip=False)
    assert _hypercall(none, constant("KVM_HC_SEND_IPI"), 1, 0, 0, 0xF1) == -95


def test_ipis_by_hypercall_reach_other_vcpus():
    vmm = Vmm()
    first = vmm.vcpu
    for ident in (1, 2):
        vmm.vcpu = vmm.ioctl(vmm.vm, "KVM_CREATE_VCPU", ident)
        _software_enable(vmm)
    other, vmm.vcpu = vmm.vcpu, first
    _software_enable(vmm)
    assert _hypercall(vmm, constant("KVM_HC_SEND_IPI"), 0b111, 0, 0, 0x41) == 3
    assert _hypercall(vmm, constant("KVM_HC_SEND_IPI"), 6, 0, 0, 0x400) == 2
    vmm.vcpu = other
    assert int(events(vmm)["nmi.pending"]) == 1
    page = vmm.get("KVM_GET_LAPIC", "kvm_lapic_state").tobytes()
    assert int.from_bytes(page[0x220:0x224], "little") == 2


@EVERY_MODE
def test_other_hypercalls(mode):
    vmm = Vmm(mode)
    for nr, answer in ((1, 0), (5, 0), (9, -95), (11, 0), (2, -1000), (12, -1000), (99, -1000)):
        assert _hypercall(vmm, nr, 0, 7) == answer


def test_a_vmm_can_hold_hypercalls_to_cpuid():
    vmm = Vmm(cpuid=False)
    assert vmm.ioctl(vmm.kvm, "KVM_CHECK_EXTENSION", constant("KVM_CAP_ENFORCE_PV_FEATURE_CPUID")) == 1
    _without(vmm, 0x4000_0001, "eax", 11)
    _software_enable(vmm)
    assert _hypercall(vmm, 10, 1, 0, 0, 0x41) == 1
    assert _enable(vmm, vmm.vcpu, "ENFORCE_PV_FEATURE_CPUID", 1) == 0
    assert _hypercall(vmm, 10, 1, 0, 0, 0x41) == -1000
    assert _hypercall(vmm, 11) == 0
    assert _enable(vmm, vmm.vcpu, "ONE_REG", 1) == errno("EINVAL")


def test_a_kick_ends_the_next_halt():
    vmm = Vmm()
    _guest(vmm, "mov eax, 5; xor ebx, ebx; xor ecx, ecx; vmcall; hlt; out 0x80, al")


# --- what the library of the selftests asks in every VM ---------------------------------------------------
def test_real_mode_s_addresses_are_taken():
    vmm = Vmm()
    assert vmm.ioctl(vmm.vm, "KVM_SET_TSS_ADDR", 0xFFFB_D000) == 0
    assert vmm.ioctl(vmm.vm, "KVM_SET_TSS_ADDR", 0xFFFF_E000) == errno("EINVAL")
    where = (0xFFFB_C000).to_bytes(8, "little")
    assert vmm.give(vmm.vm, "KVM_SET_IDENTITY_MAP_ADDR", where) == errno("EINVAL")  # there is a vCPU
    assert vmm.ioctl(vmm.vm, "KVM_SET_BOOT_CPU_ID", 1) == errno("EBUSY")


def test_another_vcpu_is_the_first_one():
    vmm = Vmm()
    vm = vmm.ioctl(vmm.kvm, "KVM_CREATE_VM")
    assert vmm.give(vm, "KVM_SET_IDENTITY_MAP_ADDR", (0xFFFB_C000).to_bytes(8, "little")) == 0
    assert vmm.ioctl(vm, "KVM_SET_BOOT_CPU_ID", 5000) == errno("EINVAL")
    assert vmm.ioctl(vm, "KVM_SET_BOOT_CPU_ID", 1) == 0
    assert vmm.ioctl(vm, "KVM_CREATE_IRQCHIP") == 0
    for ident, base, state in ((0, 0xFEE0_0800, 1), (1, 0xFEE0_0900, 0)):
        vmm.vcpu = vmm.ioctl(vm, "KVM_CREATE_VCPU", ident)
        assert int(vmm.get("KVM_GET_SREGS", "kvm_sregs")["apic_base"]) == base
        assert int(vmm.get("KVM_GET_MP_STATE", "kvm_mp_state")["mp_state"]) == state


def test_half_of_the_irqchip():
    vmm = Vmm(irqchip=False)
    assert _enable(vmm, vmm.vm, "SPLIT_IRQCHIP", 24) == errno("EINVAL")  # there is a vCPU
    vm = vmm.ioctl(vmm.kvm, "KVM_CREATE_VM")
    assert _enable(vmm, vm, "SPLIT_IRQCHIP", 25) == errno("EINVAL")
    assert _enable(vmm, vm, "SPLIT_IRQCHIP", 24) == 0
    assert _enable(vmm, vm, "SPLIT_IRQCHIP", 24) == errno("EEXIST")
    assert vmm.ioctl(vm, "KVM_CREATE_IRQCHIP") == errno("EEXIST")
    vmm.vcpu = vmm.ioctl(vm, "KVM_CREATE_VCPU", 0)
    vmm.get("KVM_GET_LAPIC", "kvm_lapic_state")


def test_the_clock_of_a_vm():
    vmm = Vmm()
    clock = vmm.get("KVM_GET_CLOCK", "kvm_clock_data", vmm.vm)
    assert int(clock["flags"]) == 0xE
    assert vmm.ioctl(vmm.vm, "KVM_CHECK_EXTENSION", constant("KVM_CAP_ADJUST_CLOCK")) == 0xE
    row = STRUCTS["kvm_clock_data"]
    assert vmm.give(vmm.vm, "KVM_SET_CLOCK", row.new(clock=10**12).tobytes()) == 0
    now = int(vmm.get("KVM_GET_CLOCK", "kvm_clock_data", vmm.vm)["clock"])
    assert 10**12 <= now < 10**12 + 10**6
    assert vmm.give(vmm.vm, "KVM_SET_CLOCK", row.new(flags=1).tobytes()) == errno("EINVAL")
    realtime = max(int(clock["realtime"]), 1) - 1  # some time has passed on the way
    assert vmm.give(vmm.vm, "KVM_SET_CLOCK", row.new(clock=5, flags=4, realtime=realtime).tobytes()) == 0
    assert int(vmm.get("KVM_GET_CLOCK", "kvm_clock_data", vmm.vm)["clock"]) > 5


def test_an_msi_of_the_vmm():
    vmm = Vmm()
    row = STRUCTS["kvm_msi"]

    def send(**values: int) -> int:
        return vmm.give(vmm.vm, "KVM_SIGNAL_MSI", row.new(**values).tobytes())

    assert send(address_lo=0xFEE0_0000, data=0x41) == 0  # its APIC is software-disabled
    _software_enable(vmm)
    assert send(address_lo=0xFEE0_0000, data=0x41) == 1
    assert send(address_lo=0xFEE0_1000, data=0x42) == errno("EPERM")
    assert send(address_lo=0xFEEF_F000, data=0x43) == 1
    assert send(address_lo=0xFEE0_0000, data=0x44, flags=1) == errno("EINVAL")
    page = vmm.get("KVM_GET_LAPIC", "kvm_lapic_state").tobytes()
    assert int.from_bytes(page[0x220:0x224], "little") == 0b1010
    none = Vmm(irqchip=False)
    assert none.give(none.vm, "KVM_SIGNAL_MSI", row.new().tobytes()) == errno("EINVAL")


def test_the_offset_of_a_vcpus_tsc():
    vmm = Vmm()
    at, row = vmm.page(), STRUCTS["kvm_device_attr"]
    attr = row.new(addr=at).tobytes()
    assert vmm.give(vmm.vcpu, "KVM_HAS_DEVICE_ATTR", attr) == 0
    for wrong in (row.new(group=1), row.new(attr=1)):
        for name in ("KVM_HAS_DEVICE_ATTR", "KVM_GET_DEVICE_ATTR", "KVM_SET_DEVICE_ATTR"):
            assert vmm.give(vmm.vcpu, name, wrong.tobytes()) == errno("ENXIO")
    vmm.host.put_user(at, U64_MAX - 41, 8)
    assert vmm.give(vmm.vcpu, "KVM_SET_DEVICE_ATTR", attr) == 0
    vmm.host.put_user(at, 0, 8)
    assert vmm.give(vmm.vcpu, "KVM_GET_DEVICE_ATTR", attr) == 0
    assert vmm.host.get_user(at, 8) == U64_MAX - 41
    first = vmm.read(0x10)[0]
    vmm.vcpu = vmm.ioctl(vmm.vm, "KVM_CREATE_VCPU", 1)  # joins
    assert vmm.ioctl(vmm.vcpu, "KVM_SET_CPUID2", vmm.supported()) == 0
    assert 0 <= vmm.read(0x10)[0] - first < 10**7


@pytest.mark.parametrize("mode", ["none", "emulated"])
@pytest.mark.parametrize(
    ("path", "value"),
    [("kvm/parameters/ignore_msrs", "N"), ("kvm/parameters/force_emulation_prefix", "0"),
     ("kvm_intel/parameters/unrestricted_guest", "N"), ("kvm/parameters/enable_pmu", None),
     ("kvm_intel/parameters/ept", "Y"), ("kvm_intel/parameters/nested", "N"),
     ("kvm/parameters/enable_vmware_backdoor", "N")],
)  # fmt: skip
def test_parameters_of_the_module(mode, path, value):
    vmm = Vmm(mode)
    fd = vmm.kernel.call("openat", -100, vmm.page(f"/sys/module/{path}\0".encode()), 0, 0)
    at = vmm.page()
    assert vmm.kernel.call("read", fd, at, 8) == 2
    wanted = value or ("N" if mode == "none" else "Y")
    assert vmm.host.copy_from_user(at, 2) == f"{wanted}\n".encode()


@EVERY_MODE
@pytest.mark.parametrize("cpu", ["spr", "emr", "icx", "skx"])
def test_what_kvm_supports_the_hosts_own_cpuid_has(mode, cpu):
    """this_cpu_has() and this_pmu_has() of a host program beside kvm_cpu_has() and kvm_pmu_has()."""
    vmm = Vmm(mode, cpu=cpu)
    core = vmm.host.core
    of_kvm = {(1, "ecx"): 1 << 31 | 1 << 24 | 1 << 21, (0xA, "edx"): 1 << 15}  # whatever the CPU has

    def cpuid(leaf: int) -> dict[str, int]:
        core.regs[0], core.regs[1] = leaf, 0
        cpuid_answer(core, core.cpuid, core.lapic.apic_base)
        return dict(zip(("eax", "ecx", "edx", "ebx"), (int(v) for v in core.regs[:4]), strict=True))

    for leaf, entry in vmm.leaves(vmm.supported()).items():
        host = cpuid(leaf)
        if leaf in (1, 7, 0x8000_0001):
            for name in ("ecx", "edx") + (("ebx",) if leaf == 7 else ()):
                assert int(entry[name]) & ~host[name] & ~of_kvm.get((leaf, name), 0) == 0
        elif leaf == 0xA:
            version, counters, width, length = (host["eax"] >> shift & 0xFF for shift in (0, 8, 16, 24))
            assert (version, counters, width) >= (4, 8, 48) or cpu == "skx"
            assert length <= 8  # NR_INTEL_ARCH_EVENTS
            if mode != "none":
                assert int(entry["eax"]) == host["eax"] & ~0xFF | 2
                assert int(entry["ebx"]) == host["ebx"]
                assert int(entry["edx"]) & 0x1F == min(host["edx"] & 0x1F, 3)
            else:
                assert int(entry["eax"]) & 0xFF == 0
        elif leaf in (0, 0x8000_0000):
            for name in ("ebx", "ecx", "edx"):
                assert int(entry[name]) == host[name]


def test_there_are_no_statistics():
    """KVM_CAP_BINARY_STATS_FD says so, and who asks all the same gets ENOTTY, a vCPU's the vCPU's errno."""
    vmm = Vmm()
    for fd in (vmm.kvm, vmm.vm):
        assert vmm.ioctl(fd, "KVM_CHECK_EXTENSION", constant("KVM_CAP_BINARY_STATS_FD")) == 0
    request = 0xAE << 8 | 0xCE  # KVM_GET_STATS_FD
    assert vmm.kernel.call("ioctl", vmm.vm, request, 0) == errno("ENOTTY")
    assert vmm.kernel.call("ioctl", vmm.vcpu, request, 0) == errno("EINVAL")


# --- events -----------------------------------------------------------------------------------------------
IDT, HANDLER = 0x3000, 0x5000


def _with_idt(vmm: Vmm, vector: int, text: str, rflags: int = 2) -> None:
    """A guest whose handler of `vector` does OUT to port 0x90."""
    vmm.load(code(text.replace("; ", "\n")))
    gate = (HANDLER & 0xFFFF | 8 << 16 | 0x8E00 << 32 | HANDLER >> 16 << 48).to_bytes(16, "little")
    vmm.host.copy_to_user(vmm.ram + IDT + 16 * vector, gate)
    vmm.host.copy_to_user(vmm.ram + HANDLER, code("out 0x90, al"))
    vmm.host.copy_to_user(vmm.ram + 0x500, bytes(8) + (0x00AF9B000000FFFF).to_bytes(8, "little"))
    sregs = vmm.get("KVM_GET_SREGS", "kvm_sregs")
    sregs["idt"]["base"], sregs["idt"]["limit"] = IDT, 0xFFF
    sregs["gdt"]["base"], sregs["gdt"]["limit"] = 0x500, 0x2F
    assert vmm.give(vmm.vcpu, "KVM_SET_SREGS", sregs.tobytes()) == 0
    regs = registers(vmm)
    regs["rflags"] = rflags
    assert vmm.give(vmm.vcpu, "KVM_SET_REGS", regs.tobytes()) == 0


@MODES
def test_an_injected_nmi_comes_though_nmis_are_masked(mode):
    vmm = Vmm(mode)
    _with_idt(vmm, 2, "out 0x80, al")
    change_events(vmm, nmi_injected=1, nmi_masked=0)
    assert int(events(vmm)["nmi.injected"]) == 1
    assert vmm.run() == 0
    assert int(vmm.kvm_run["io.port"]) == 0x90
    found = events(vmm)
    assert (int(found["nmi.injected"]), int(found["nmi.masked"])) == (0, 1)


@MODES
def test_an_injected_interrupt_comes(mode):
    vmm = Vmm(mode)
    _with_idt(vmm, 0x41, "out 0x80, al", rflags=0x202)
    change_events(vmm, interrupt_injected=1, interrupt_nr=0x41)
    found = events(vmm)
    assert (int(found["interrupt.injected"]), int(found["interrupt.nr"])) == (1, 0x41)
    assert vmm.run() == 0
    assert int(vmm.kvm_run["io.port"]) == 0x90
    assert int(events(vmm)["interrupt.injected"]) == 0


def test_interrupts_of_a_controller_in_the_vmm():
    """KVM_INTERRUPT, and the window that a VMM waits for."""
    vmm = Vmm(irqchip=False)
    _with_idt(vmm, 0x41, "out 0x80, al; sti; nop; nop; out 0x81, al")
    assert vmm.give(vmm.vcpu, "KVM_INTERRUPT", (256).to_bytes(4, "little")) == errno("EINVAL")
    vmm.kvm_run["request_interrupt_window"] = 1
    assert vmm.run() == 0
    assert int(vmm.kvm_run["io.port"]) == 0x80
    assert int(vmm.kvm_run["ready_for_interrupt_injection"]) == 0
    assert vmm.run() == 0
    assert int(vmm.kvm_run["exit_reason"]) == constant("KVM_EXIT_IRQ_WINDOW_OPEN")
    assert int(vmm.kvm_run["ready_for_interrupt_injection"]) == 1
    vmm.kvm_run["request_interrupt_window"] = 0
    assert vmm.give(vmm.vcpu, "KVM_INTERRUPT", (0x41).to_bytes(4, "little")) == 0
    assert vmm.run() == 0
    assert int(vmm.kvm_run["io.port"]) == 0x90
    kernel = Vmm()
    assert kernel.give(kernel.vcpu, "KVM_INTERRUPT", (0x41).to_bytes(4, "little")) == errno("ENXIO")


# --- userspace_msr_exit_test.c and set_sregs_test.c  ------------------------------------------------------
def _filter(flags: int, nmsrs: int = 8, of_range: int = 3) -> bytes:
    data = STRUCTS["kvm_msr_filter"].new(flags=flags)
    data["ranges"][0]["flags"], data["ranges"][0]["nmsrs"], data["ranges"][0]["base"] = of_range, nmsrs, 0
    return bytes(data.tobytes())


def test_every_flag_of_the_capability_the_filter_and_its_ranges():
    vmm = Vmm()
    for bit in range(32):
        answer = 0 if bit < 3 else errno("EINVAL")
        assert _enable(vmm, vmm.vm, "X86_USER_SPACE_MSR", 1 << bit) == answer
        for flags, nmsrs, of_range, valid in ((1 << bit, 8, 3, bit < 1), (0, 8, 1 << bit, bit < 2)):
            data = bytearray(_filter(flags, nmsrs, of_range))
            at = STRUCTS["kvm_msr_filter"].offset("ranges")
            at += STRUCTS["kvm_msr_filter_range"].offset("bitmap")
            data[at : at + 8] = vmm.page().to_bytes(8, "little")
            wanted = 0 if valid else errno("EINVAL")
            assert vmm.give(vmm.vm, "KVM_X86_SET_MSR_FILTER", bytes(data)) == wanted
        vmm.left = 64 * 4096
    for nmsrs, of_range in ((8 * 0x600 + 1, 3), (8, 0)):
        assert vmm.give(vmm.vm, "KVM_X86_SET_MSR_FILTER", _filter(0, nmsrs, of_range)) == errno("EINVAL")
    assert vmm.give(vmm.vm, "KVM_X86_SET_MSR_FILTER", _filter(1, 0)) == errno("EINVAL")  # denies everything


@pytest.mark.parametrize("bit", [11, 12, 13, 14, 17, 20, 21, 22, 63])
def test_bits_of_cr4_that_no_cpuid_announces(bit):
    for cpuid in (False, True):
        vmm = Vmm(cpuid=cpuid)
        vmm.long_mode()
        sregs = vmm.get("KVM_GET_SREGS", "kvm_sregs")
        sregs["cr4"] = 0x20 | 1 << bit
        assert vmm.give(vmm.vcpu, "KVM_SET_SREGS", sregs.tobytes()) == errno("EINVAL")


def test_fsgsbase_in_cr4_follows_the_guests_cpuid():
    vmm = Vmm(cpuid=False)
    vmm.long_mode()
    sregs = vmm.get("KVM_GET_SREGS", "kvm_sregs")
    sregs["cr4"] = 0x20 | 1 << 16
    assert vmm.give(vmm.vcpu, "KVM_SET_SREGS", sregs.tobytes()) == 0  # nothing is held against it yet
    _without(vmm, 7, "ebx", 0)
    assert vmm.give(vmm.vcpu, "KVM_SET_SREGS", sregs.tobytes()) == errno("EINVAL")


@MODES
def test_what_the_emulator_cannot_do_is_an_internal_error(mode):
    vmm = Vmm(mode)
    vmm.kernel.S.config.force_emulation_prefix = 1
    vmm.load(code("nop\nud2\n.byte 'k', 'v', 'm'\niretq\n"))
    assert vmm.run() == 0
    run = vmm.kvm_run
    assert int(run["exit_reason"]) == constant("KVM_EXIT_INTERNAL_ERROR")
    assert int(run["internal.suberror"]) == constant("KVM_INTERNAL_ERROR_EMULATION")
    assert (int(run["internal.ndata"]), int(run["internal.data"][0])) == (1, 0)
    assert int(registers(vmm)["rip"]) == 0x1006


# --- vmx_pmu_caps_test.c ----------------------------------------------------------------------------------
MODES_AND_CPUS = pytest.mark.parametrize("cpu", ["spr", "emr", "icx", "skx"])


@EVERY_MODE
@MODES_AND_CPUS
def test_a_new_vcpu_has_all_capabilities_that_kvm_supports(mode, cpu):
    vmm = Vmm(mode, cpu=cpu)
    data = STRUCTS["kvm_msrs"].new(nmsrs=1).tobytes() + STRUCTS["kvm_msr_entry"].new(index=0x345).tobytes()
    at = vmm.page(data)
    assert vmm.ioctl(vmm.kvm, "KVM_GET_MSRS", at) == 1
    supported = vmm.host.get_user(at + 16, 8)
    assert vmm.read(0x345) == [supported]
    assert bool(supported) == (mode != "none")
    if supported:
        _guest(vmm, "mov ecx, 0x345; rdmsr; out 0x80, al")
        assert int(registers(vmm)["rax"]) == supported


@MODES
@MODES_AND_CPUS
def test_capabilities_by_bit_and_by_format(mode, cpu):
    """LBR and PEBS are there as the host has them or not at all; the rest is the VMM's to choose."""
    vmm = Vmm(mode, cpu=cpu)
    (host,) = vmm.read(0x345)
    formats, immutable = 0xF3F, 0x24FFF
    left = vmm.left

    def taken(value: int) -> bool:
        vmm.left = left
        found = vmm.set((0x345, value)) == 1
        assert not found or vmm.read(0x345) == [value]
        vmm.set((0x345, host))
        return found

    assert taken(0)
    assert taken(host)
    for bit in range(64):
        if host & ~immutable & 1 << bit:
            assert taken(1 << bit)
            assert taken(host & ~(1 << bit))
        elif not formats >> bit & 1:
            assert not taken(host ^ 1 << bit)
    for low in range(1, 64):
        assert taken(host & ~0x3F | low) == (low == host & 0x3F)
    for low in range(1, 16):
        assert taken(host & ~0xF00 | low << 8) == (low == host >> 8 & 0xF)
    _guest(vmm, "out 0x80, al")
    for bit in range(64):  # and none once it has run
        assert not taken(host ^ 1 << bit)
    assert not taken(0)
    assert taken(host)


@pytest.mark.parametrize("cpu", ["icx", "skx"])
def test_branch_records_go_with_the_pmu(cpu):
    vmm = Vmm(cpu=cpu)
    assert vmm.set((0x1C9, 7)) == 1
    assert vmm.read(0x1C9) == [7]
    at = vmm.supported()
    row, entry = STRUCTS["kvm_cpuid2"], STRUCTS["kvm_cpuid_entry2"]
    n = list(vmm.leaves(at)).index(0xA)
    vmm.host.copy_to_user(at + row.size + entry.size * n, entry.new(function=0xA).tobytes())
    assert vmm.ioctl(vmm.vcpu, "KVM_SET_CPUID2", at) == 0
    assert vmm.set((0x1C9, 7)) == 0


# --- pmu_event_filter_test.c ------------------------------------------------------------------------------
ALLOW, DENY = constant("KVM_PMU_EVENT_ALLOW"), constant("KVM_PMU_EVENT_DENY")
MASKED = constant("KVM_PMU_EVENT_FLAG_MASKED_EVENTS")
MOST = 300  # KVM_PMU_EVENT_FILTER_MAX_EVENTS
UCALL = 0x1000  # the port by which a guest says that it is there: IN, with what it says in RDI
ARCHITECTURAL = (0x003C, 0x00C0, 0x013C, 0x4F2E, 0x412E, 0x00C4, 0x00C5, 0x01A4, 0x00C2)
BRANCHES, INSNS = 0x00C4, 0x00C0
FIXED_CTR0, FIXED_CTR_CTRL, GLOBAL_CTRL = 0x309, 0x38D, 0x38F


def _filter_of(vmm: Vmm, events: tuple[int, ...] = (), action: int = ALLOW, **more: int) -> int:
    more.setdefault("nevents", len(events))
    data = STRUCTS["kvm_pmu_event_filter"].new(action=action, **more)
    vmm.left = max(vmm.left, 8 * 4096)
    at = data.tobytes() + b"".join(event.to_bytes(8, "little") for event in events)
    return vmm.give(vmm.vm, "KVM_SET_PMU_EVENT_FILTER", at)


def _sync(vmm: Vmm) -> int:
    """Run to the guest's next IN, as selftests' GUEST_SYNC: its RDI."""
    vmm.left = 32 * 4096
    assert vmm.run() == 0
    row = next(k for k, v in enumerate(vmm.kernel.S.vcpus) if int(v.vcpu_id) == vmm.vcpu_id)
    run = STRUCTS["kvm_run"].view(vmm.kernel.M, int(vmm.kernel.S.vcpus[row].run_page))
    assert int(run["exit_reason"]) == constant("KVM_EXIT_IO"), int(run["exit_reason"])
    assert (int(run["io.port"]), int(run["io.direction"])) == (UCALL, 0)
    return int(registers(vmm)["rdi"])


def _wrmsr(index: int, value: int) -> str:
    return f"mov ecx, {index}; mov eax, {value & 0xFFFF_FFFF}; mov edx, {value >> 32}; wrmsr\n"


def _read(index: int, register: str) -> str:
    return f"mov ecx, {index}; rdmsr; mov {register}, eax\n"


def _counting(selectors: tuple[int, ...], work: str) -> str:
    """A guest that counts `work` by counters 0, 1, ... for ever; RDI has the counts, 16 bits each."""
    n = len(selectors)
    text = "again: " + _wrmsr(GLOBAL_CTRL, 0)
    text += "".join(_wrmsr(0x186 + k, 0x42_0000 | event) for k, event in enumerate(selectors))
    text += "".join(_wrmsr(0x4C1 + k, 0) for k in range(n)) + _wrmsr(GLOBAL_CTRL, (1 << n) - 1) + work
    text += _wrmsr(GLOBAL_CTRL, 0) + "xor edi, edi\n"
    for k in reversed(range(n)):
        text += _read(0x4C1 + k, "esi") + "shl rdi, 16; or rdi, rsi\n"
    return text + f"mov edx, {UCALL}; in al, dx; jmp again"


def _vcpu(text: str, mode: str, ident: int = 0) -> Vmm:
    vmm = Vmm(mode)
    vmm.vcpu_id = ident
    if ident:
        vmm.vcpu = vmm.ioctl(vmm.vm, "KVM_CREATE_VCPU", ident)
        assert vmm.ioctl(vmm.vcpu, "KVM_SET_CPUID2", vmm.supported()) == 0
        state = STRUCTS["kvm_mp_state"].new(mp_state=0)
        assert vmm.give(vmm.vcpu, "KVM_SET_MP_STATE", state.tobytes()) == 0
    vmm.load(code(text.replace("; ", "\n")))
    return vmm


def _masked(match: int, mask: int, exclude: int = 0, select: int = 0xD0) -> int:
    return select & 0xFF | match << 8 | exclude << 55 | mask << 56


@MODES
def test_lists_that_have_an_event_and_lists_that_lack_it(mode):
    vmm = _vcpu(_counting((BRANCHES, INSNS), "mov ecx, 42\nwork: loop work\n"), mode)
    lacking = tuple(event for event in ARCHITECTURAL if event not in (BRANCHES, INSNS, 0x00C2))
    counts = _sync(vmm)
    assert counts & 0xFFFF == 42
    assert counts >> 16 > 42
    for entries, action, found in (
        (ARCHITECTURAL, DENY, 0), (ARCHITECTURAL, ALLOW, counts),
        (lacking, DENY, counts), (lacking, ALLOW, 0),
        ((INSNS,), ALLOW, counts >> 16 << 16), ((INSNS,), DENY, counts & 0xFFFF),
        ((0x1C0, 0x1_0000_00C4), DENY, counts), ((), DENY, counts), ((), ALLOW, 0),
    ):  # fmt: skip
        assert _filter_of(vmm, entries, action) == 0
        assert _sync(vmm) == found


LOADS, STORES, BOTH = 1, 2, 4


@MODES
@pytest.mark.parametrize("dense", [0, 1], ids=["", "dense"])
def test_masked_events_of_another_vcpu(mode, dense):
    """Loads, stores and both of 0xD0 in three counters, beside nothing or 290 other entries."""
    text = "mov dword ptr [0x5000], 0; mov eax, [0x5000]; inc dword ptr [0x5000]\n"
    vmm = _vcpu(_counting((0x81D0, 0x82D0, 0x83D0), text), mode, ident=2)
    others: tuple[int, ...] = ()
    for k in range(dense * (MOST - 10)):
        select = k % 0xFF
        select += select in (0xD0, 0x29)
        others += (_masked(0, 0, exclude=int(k % 4 == 0), select=select),)
    assert [_sync(vmm) >> 16 * k & 0xFFFF > 0 for k in range(3)] == [True] * 3
    for entries, found in (
        ((_masked(0x81, 0xFF),), LOADS), ((_masked(0x82, 0xFF),), STORES), ((_masked(0x83, 0xFF),), BOTH),
        ((_masked(0, 0x7C), _masked(0x83, 0xFF, 1)), LOADS | STORES),
        ((_masked(0, 0x7C), _masked(0x82, 0xFF, 1)), LOADS | BOTH),
        ((_masked(0x82, 0xFE),), STORES | BOTH), ((_masked(0, 0x7C),), LOADS | STORES | BOTH),
    ):  # fmt: skip
        assert _filter_of(vmm, others + entries, flags=MASKED) == 0
        counts = _sync(vmm)
        assert sum(1 << k for k in range(3) if counts >> 16 * k & 0xFFFF) == found


@MODES
def test_what_a_filter_may_say(mode):
    vmm = Vmm(mode)
    invalid = errno("EINVAL")
    assert _filter_of(vmm, ((1 << 64) - 1,)) == 0  # it can never match
    assert _filter_of(vmm, ((1 << 64) - 1,), flags=MASKED) == invalid
    assert _filter_of(vmm, (0xFF80_0000_0000_FFFF,), flags=MASKED) == 0
    for bit in range(64):
        wanted = 0 if 0xFF80_0000_0000_FFFF >> bit & 1 else invalid
        assert _filter_of(vmm, (1 << bit,), flags=MASKED) == wanted
    for action in (2, 3, 1 << 31):
        assert _filter_of(vmm, ARCHITECTURAL, action) == invalid
    for bit in range(1, 32):
        assert _filter_of(vmm, ARCHITECTURAL, flags=1 << bit) == invalid
    assert _filter_of(vmm, (0xC0,) * MOST) == 0
    assert _filter_of(vmm, (0xC0,) * (MOST + 1)) == errno("E2BIG")
    assert _filter_of(vmm, ARCHITECTURAL, 2, nevents=MOST + 1) == invalid  # the action is looked at first
    assert _filter_of(vmm, ARCHITECTURAL, fixed_counter_bitmap=0xFFFF_FFF0) == 0
    for name in ("PMU_EVENT_FILTER", "PMU_EVENT_MASKED_EVENTS"):
        assert vmm.ioctl(vmm.kvm, "KVM_CHECK_EXTENSION", constant(f"KVM_CAP_{name}")) == 1


@MODES
@pytest.mark.parametrize("index", range(3))
def test_the_bitmap_goes_before_the_list_for_fixed_counters(mode, index):
    text = "again: " + _wrmsr(GLOBAL_CTRL, 0) + _wrmsr(FIXED_CTR0 + index, 0)
    text += _wrmsr(FIXED_CTR_CTRL, 1 << 4 * index) + _wrmsr(GLOBAL_CTRL, 1 << 32 + index)
    text += "mov ecx, 420\nwork: loop work\n" + _wrmsr(GLOBAL_CTRL, 0) + _read(FIXED_CTR0 + index, "edi")
    vmm = _vcpu(text + f"mov edx, {UCALL}; in al, dx; jmp again", mode)
    assert _sync(vmm) > 0
    for bitmap in (1, 2, 4, 8, 16, 1 << index, 7, 0):
        for action in (ALLOW, DENY):
            for entries in ((), ARCHITECTURAL):
                assert _filter_of(vmm, entries, action, fixed_counter_bitmap=bitmap) == 0
                assert (_sync(vmm) > 0) == (bool(bitmap >> index & 1) == (action == ALLOW))


@pytest.mark.parametrize("action", [ALLOW, DENY])
@MODES
def test_a_filter_reaches_a_counter_that_runs(mode, action):
    """The guest does not touch its PMU any more: the request does, before the next entry."""
    text = _wrmsr(0x186, 0x42_0000 | INSNS) + _wrmsr(GLOBAL_CTRL, 1)
    text += f"again: mov ecx, 0x4c1; rdmsr; mov edi, eax; mov edx, {UCALL}; in al, dx; jmp again"
    vmm = _vcpu(text, mode)
    first, second = _sync(vmm), _sync(vmm)
    assert 0 < first < second
    assert _filter_of(vmm, (INSNS,), DENY) == 0
    stopped = _sync(vmm)
    assert stopped == _sync(vmm)
    assert _filter_of(vmm, (INSNS,) if action == ALLOW else (), action) == 0
    _sync(vmm)
    third = _sync(vmm)
    assert third < _sync(vmm)


def test_a_vm_without_a_pmu_has_none_to_flip_bits_in():
    vmm = Vmm(cpuid=False)
    vm = vmm.ioctl(vmm.kvm, "KVM_CREATE_VM")
    cap = STRUCTS["kvm_enable_cap"].new(cap=constant("KVM_CAP_PMU_CAPABILITY"))
    for value, answer in ((2, errno("EINVAL")), (1, 0)):
        cap["args"][0] = value
        assert vmm.give(vm, "KVM_ENABLE_CAP", cap.tobytes()) == answer
    assert vmm.ioctl(vmm.kvm, "KVM_CHECK_EXTENSION", constant("KVM_CAP_PMU_CAPABILITY")) == 1
    vmm.vcpu = vmm.ioctl(vm, "KVM_CREATE_VCPU", 0)
    assert vmm.ioctl(vmm.vcpu, "KVM_SET_CPUID2", vmm.supported()) == 0
    for index in (GLOBAL_CTRL, 0x4C1):
        assert vmm.set((index, 1)) == 0
    cap["args"][0] = 1
    assert vmm.give(vm, "KVM_ENABLE_CAP", cap.tobytes()) == errno("EINVAL")  # there is a vCPU
