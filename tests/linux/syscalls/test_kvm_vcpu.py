"""A vCPU under its VMM: what the two see of each other in the midst of an instruction, an NMI, a timer."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from tests.linux.syscalls.test_kvm import EVTSEL0, GLOBAL_CTRL, INSTRUCTIONS, PMC0, Vmm, errno
from vpmu_emu.asm import assemble
from vpmu_emu.linux.kvm.cpuid import supported_leaves
from vpmu_emu.machine.ring import TR_GUEST_WRMSR, TR_GUEST_WRMSR_BLIND
from vpmu_emu.machine.state import NEVER
from vpmu_emu.system import host_model
from vpmu_emu.tables import modes
from vpmu_emu.tables.linux import STRUCTS, constant

pytestmark = pytest.mark.uncompiled

MODES = pytest.mark.parametrize("mode", ["emulated", "passthrough", "mediated"])
FEP = "ud2; .byte 'k', 'v', 'm'; "


@cache
def code(text: str) -> bytes:
    """The bytes of a guest that lies at 0x1000."""
    program = assemble(f".intel_syntax noprefix\n.text\n_start:\n{text}\n", "guest.s")
    return bytes(program.segments[0].data)


def registers(vmm: Vmm) -> Any:
    return vmm.get("KVM_GET_REGS", "kvm_regs")


def events(vmm: Vmm) -> Any:
    return vmm.get("KVM_GET_VCPU_EVENTS", "kvm_vcpu_events")


def change_events(vmm: Vmm, **values: int) -> None:
    found = events(vmm)
    for name, value in values.items():
        found[name.replace("_", ".")] = value
    assert vmm.give(vmm.vcpu, "KVM_SET_VCPU_EVENTS", found.tobytes()) == 0


# --- NMIs -----------------------------------------------------------------------------------------------
def _x2apic(vmm: Vmm) -> None:
    sregs = vmm.get("KVM_GET_SREGS", "kvm_sregs")
    sregs["apic_base"] = 0xFEE0_0D00
    assert vmm.give(vmm.vcpu, "KVM_SET_SREGS", sregs.tobytes()) == 0


@pytest.mark.parametrize(("masked", "most"), [(0, 2), (1, 1)])
def test_how_many_nmis_wait(masked, most):
    """process_nmi(): one, and beside it the one that is injected at once, whoever sent them."""
    for ways in (("ioctl", "ioctl", "ioctl"), ("events", "ioctl"), ("events",)):
        vmm = Vmm()
        change_events(vmm, nmi_masked=masked)
        for way in ways:
            if way == "ioctl":
                assert vmm.ioctl(vmm.vcpu, "KVM_NMI") == 0
            else:
                change_events(vmm, nmi_pending=7)
        assert int(events(vmm)["nmi.pending"]) == most
        change_events(vmm, nmi_masked=1)  # what waits goes on waiting
        assert int(events(vmm)["nmi.pending"]) == 1


@MODES
@pytest.mark.parametrize(("masked", "most"), [(0, 2), (1, 1)])
def test_nmis_of_another_vcpu(mode, masked, most):
    vmm = Vmm(mode)
    first = vmm.vcpu
    vmm.vcpu = vmm.ioctl(vmm.vm, "KVM_CREATE_VCPU", 1)
    change_events(vmm, nmi_masked=masked)
    vmm.vcpu = first
    send = "mov ecx, 0x830; mov eax, 0x400; mov edx, 1; .rept 3; wrmsr; .endr; out 0x80, al"
    vmm.load(code(send.replace("; ", "\n")))
    _x2apic(vmm)
    assert vmm.run() == 0
    assert int(vmm.kvm_run["exit_reason"]) == constant("KVM_EXIT_IO")
    assert int(events(vmm)["nmi.pending"]) == 0
    vmm.vcpu += 1
    assert int(events(vmm)["nmi.pending"]) == most


# The VMM sends at port 0x80, and again at 0x82, in the first run of the handler; rbx counts the runs.
NMI_GUEST = """
    lgdt gdtr[rip]
    lidt idtr[rip]
    lea rax, nmi[rip]
    mov gate[rip], ax
    xor ebx, ebx
    out 0x80, al
    nop
    nop
    out 0x81, al
nmi:
    inc ebx
    cmp ebx, 1
    jne 1f
    out 0x82, al
1:  iretq
.balign 8
gdt:  .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
idt:  .zero 32
gate: .word 0, 8, 0x8e00, 0
      .quad 0
gdtr: .word 23
      .quad 0x1000 + gdt - _start
idtr: .word 47
      .quad 0x1000 + idt - _start
"""


def _by_ioctl(vmm: Vmm, count: int) -> None:
    for _ in range(count):
        assert vmm.ioctl(vmm.vcpu, "KVM_NMI") == 0


def _by_another_vcpu(vmm: Vmm, count: int) -> None:
    receiver = vmm.vcpu
    vmm.vcpu = vmm.others[0]
    send = f"mov ecx, 0x830; mov eax, 0x400; xor edx, edx; .rept {count}; wrmsr; .endr; out 0x83, al"
    vmm.load(code(send.replace("; ", "\n")), 0x3000)
    assert vmm.run() == 0
    assert int(registers(vmm)["rcx"]) == 0x830
    vmm.vcpu = receiver


def _by_itself(vmm: Vmm, count: int) -> None:
    # As if the handler went on with so many WRMSRs of its own: its next instructions are other ones.
    found = registers(vmm)
    back = int(found["rip"])
    send = f"mov ecx, 0x830; mov eax, 0x400; xor edx, edx; .rept {count}; wrmsr; .endr; push {back}; ret"
    found["rip"] = 0x3000 + 0x100 * count
    vmm.host.copy_to_user(vmm.ram + int(found["rip"]), code(send.replace("; ", "\n")))
    assert vmm.give(vmm.vcpu, "KVM_SET_REGS", found.tobytes()) == 0


@pytest.mark.parametrize("mode", ["none", "emulated", "passthrough"])
@pytest.mark.parametrize("send", [_by_ioctl, _by_another_vcpu, _by_itself])
def test_two_nmis_in_a_handler_are_one_more_run(mode, send):
    """process_nmi(): while NMIs are blocked one waits, whoever sends them; two runs in all."""
    vmm = Vmm(mode)
    receiver = vmm.vcpu
    vmm.vcpu = vmm.ioctl(vmm.vm, "KVM_CREATE_VCPU", 1)
    runnable = STRUCTS["kvm_mp_state"].new(mp_state=constant("KVM_MP_STATE_RUNNABLE"))
    assert vmm.give(vmm.vcpu, "KVM_SET_MP_STATE", runnable.tobytes()) == 0
    assert vmm.ioctl(vmm.vcpu, "KVM_SET_CPUID2", vmm.supported()) == 0
    vmm.long_mode()
    _x2apic(vmm)
    vmm.others, vmm.vcpu = [vmm.vcpu], receiver
    vmm.load(code(NMI_GUEST))
    _x2apic(vmm)
    ports = []
    for count in (1, 2, 0):
        assert vmm.run() == 0
        assert int(vmm.kvm_run["exit_reason"]) == constant("KVM_EXIT_IO")
        ports.append(int(vmm.kvm_run["io.port"]))
        if count:
            _finish(vmm)
            send(vmm, count)
    assert ports == [0x80, 0x82, 0x81]
    assert int(registers(vmm)["rbx"]) == 2


# --- instructions that go to the VMM --------------------------------------------------------------------
def _counting(mode: str, text: str) -> Vmm:
    vmm = Vmm(mode)
    vmm.kernel.S.config.force_emulation_prefix = 1
    vmm.load(code(text.replace("; ", "\n")))
    assert vmm.set((GLOBAL_CTRL, 1), (EVTSEL0, INSTRUCTIONS), (PMC0, 1000)) == 3
    return vmm


def _finish(vmm: Vmm) -> int:
    vmm.kvm_run["immediate_exit"] = 1
    assert vmm.run() == errno("EINTR")
    vmm.kvm_run["immediate_exit"] = 0
    return int(registers(vmm)["rip"])


PREFIX = 5  # bytes of FEP


@MODES
@pytest.mark.parametrize("forced", [0, 1], ids=["OUT", "FEP OUT"])
def test_out_is_done_once(mode, forced):
    """The emulator is through with an OUT before the VMM hears of it, kvm_fast_pio_out() after."""
    vmm = _counting(mode, f"mov al, 65; {FEP * forced}out 0x80, al; nop; out 0x81, al")
    after = 0x1004 + PREFIX * forced
    assert vmm.run() == 0
    run = vmm.kvm_run
    assert (int(run["io.port"]), int(run["io.size"]), int(run["io.direction"])) == (0x80, 1, 1)
    assert int(registers(vmm)["rip"]) == (after if forced else 0x1002)
    assert vmm.read(PMC0) == [1001 + forced]
    assert _finish(vmm) == after
    assert vmm.read(PMC0) == [1002]
    assert vmm.run() == 0
    assert int(run["io.port"]) == 0x81
    assert vmm.read(PMC0) == [1003]
    assert int(vmm.kernel.S.vcpus[0].emulated_insns) == 1


@MODES
@pytest.mark.parametrize("forced", [0, 1], ids=["IN", "FEP IN"])
def test_in_is_done_at_the_next_run(mode, forced):
    vmm = _counting(mode, f"mov eax, -1; mov dx, 0x71; {FEP * forced}in ax, dx; out 0x81, al")
    at = 0x1009 + PREFIX * forced
    assert vmm.run() == 0
    assert (int(vmm.kvm_run["io.size"]), int(vmm.kvm_run["io.port"])) == (2, 0x71)
    assert int(registers(vmm)["rip"]) == at
    assert vmm.read(PMC0) == [1002]
    vmm.pio[:4] = np.frombuffer(b"\x34\x12\xaa\xaa", dtype=np.uint8)
    assert _finish(vmm) == at + 2
    assert int(registers(vmm)["rax"]) == 0xFFFF_1234
    assert vmm.read(PMC0) == [1003]


@MODES
@pytest.mark.parametrize("forced", [0, 1], ids=["RDMSR", "FEP RDMSR"])
def test_an_msr_of_the_vmm_is_done_at_the_next_run(mode, forced):
    vmm = _counting(mode, f"mov ecx, 0x5555; {FEP * forced}rdmsr; {FEP * forced}wrmsr; out 0x81, al")
    cap = STRUCTS["kvm_enable_cap"].new(cap=constant("KVM_CAP_X86_USER_SPACE_MSR"))
    cap["args"][0] = 7
    assert vmm.give(vmm.vm, "KVM_ENABLE_CAP", cap.tobytes()) == 0
    for n in range(2):
        assert vmm.run() == 0
        assert int(vmm.kvm_run["msr.index"]) == 0x5555
        vmm.kvm_run["msr.data"] = 0x1_0000_0002
        assert _finish(vmm) == 0x1005 + (2 + PREFIX * forced) * (n + 1)
        assert vmm.read(PMC0) == [1002 + n]
    found = registers(vmm)
    assert (int(found["rax"]), int(found["rdx"])) == (2, 1)


def _writes(vmm: Vmm) -> list[tuple[int, int | None]]:
    """(new value, old value) of the guest's WRMSRs in the trace; None: RDMSR would not have read it."""
    ring = vmm.kernel.E.ring[: int(vmm.kernel.E.ring_head)]
    old = {TR_GUEST_WRMSR: lambda event: int(event["c"]), TR_GUEST_WRMSR_BLIND: lambda event: None}
    return [(int(e["b"]), old[int(e["kind"])](e)) for e in ring if int(e["kind"]) in old]


@MODES
@pytest.mark.parametrize(
    ("flags", "index", "old"),
    [("WRITE", 0x186, 0x4300C0), ("WRITE", 0x1A0, 0x1800), ("READ WRITE", 0x186, None), ("", 0x5555, None)],
)
def test_the_old_value_of_a_write_that_the_vmm_does(mode, flags, index, old):
    """What RDMSR would have given the guest; nothing, if that had gone to the VMM too."""
    vmm = _counting(mode, f"mov ecx, {index}; mov eax, 9; xor edx, edx; wrmsr; out 0x81, al")
    cap = STRUCTS["kvm_enable_cap"].new(cap=constant("KVM_CAP_X86_USER_SPACE_MSR"))
    cap["args"][0] = 7
    assert vmm.give(vmm.vm, "KVM_ENABLE_CAP", cap.tobytes()) == 0
    given, nothing = STRUCTS["kvm_msr_filter"].new(), vmm.page(b"\0")
    for k, word in enumerate(flags.split()):
        values = {"flags": constant(f"KVM_MSR_FILTER_{word}"), "nmsrs": 1, "base": index, "bitmap": nothing}
        for name, value in values.items():
            given["ranges"][k][name] = value
    assert vmm.give(vmm.vm, "KVM_X86_SET_MSR_FILTER", given.tobytes()) == 0
    vmm.kernel.E.trace_on = 1
    assert vmm.run() == 0
    assert int(vmm.kvm_run["msr.index"]) == index
    vmm.set((0x1A0, 0x1801))  # what the VMM does meanwhile is not what was there
    _finish(vmm)
    assert _writes(vmm) == [(9, old)]


@MODES
def test_a_vmm_that_moves_the_guest_has_skipped_the_port(mode):
    """complete_fast_pio_out(): RIP is another one, and the guest goes on there."""
    vmm = _counting(mode, "out 0x80, al; nop; out 0x81, al")
    assert vmm.run() == 0
    regs = registers(vmm)
    regs["rip"] = 0x1003
    assert vmm.give(vmm.vcpu, "KVM_SET_REGS", regs.tobytes()) == 0
    assert vmm.run() == 0
    assert int(vmm.kvm_run["io.port"]) == 0x81
    assert vmm.read(PMC0) == [1000]


@MODES
def test_out_to_port_7e_is_over_when_the_vmm_hears_of_it(mode):
    """KVM_X86_QUIRK_OUT_7E_INC_RIP."""
    vmm = _counting(mode, "out 0x7e, al; out 0x81, al")
    assert vmm.run() == 0
    assert int(vmm.kvm_run["io.port"]) == 0x7E
    assert int(registers(vmm)["rip"]) == 0x1002
    assert vmm.read(PMC0) == [1001]
    assert vmm.run() == 0
    assert int(vmm.kvm_run["io.port"]) == 0x81


def test_immediate_exit_leaves_struct_kvm_run_alone():
    """KVM_RUN that finishes an instruction and does no more gives EINTR and writes nothing."""
    vmm = _counting("emulated", "out 0x80, al; hlt")
    assert vmm.run() == 0
    before = vmm.kvm_run["exit_reason"], int(vmm.kvm_run["io.port"])
    assert before == (constant("KVM_EXIT_IO"), 0x80)
    for _ in range(2):
        _finish(vmm)
        assert (vmm.kvm_run["exit_reason"], int(vmm.kvm_run["io.port"])) == before


# --- one TSC a VM ---------------------------------------------------------------------------------------
TSC = 0x10
EVERY_MODE = pytest.mark.parametrize("mode", ["none", "emulated", "passthrough", "mediated"])


def _later(vmm: Vmm, tsc: int) -> None:
    core = vmm.host.core
    core.t += 16 * tsc * int(core.tsc_den) // int(core.tsc_num)


@EVERY_MODE
def test_a_vcpu_made_later_has_the_vms_tsc(mode):
    vmm = Vmm(mode)
    first = vmm.read(TSC)[0]
    _later(vmm, 5_000_000)
    vmm.vcpu = vmm.ioctl(vmm.vm, "KVM_CREATE_VCPU", 1)
    assert 5_000_000 <= vmm.read(TSC)[0] - first < 5_100_000
    vm = int(vmm.kernel.S.vcpus[0].vm)
    assert int(vmm.kernel.S.vcpus[1].vm) == vm
    vmm.set((TSC, 0))
    assert 5_000_000 <= vmm.read(TSC)[0] - first < 5_200_000


@EVERY_MODE
def test_what_a_vmm_writes_to_the_tsc(mode):
    """Literal the first time; then what is within a second of what was expected, or 0, changes nothing."""
    vmm = Vmm(mode)
    second = 1000 * vmm.ioctl(vmm.vcpu, "KVM_GET_TSC_KHZ")
    old_kernel = mode == "passthrough"  # user_set_tsc came with 6.8

    def written(value: int) -> int:
        assert vmm.set((TSC, value)) == 1
        return int(vmm.read(TSC)[0])

    slack = 100_000
    assert (0 <= written(second // 2) - second // 2 < slack) == (not old_kernel)
    base = 10 * second
    assert 0 <= written(base) - base < slack
    assert 0 <= written(base + second // 2) - base < slack
    assert 0 <= written(base + second // 4) - base < slack  # it is the last write that is compared with
    _later(vmm, 3 * second)
    assert 0 <= written(base + 3 * second) - (base + 3 * second) < slack
    far = base + 20 * second
    assert 0 <= written(far) - far < slack
    assert 0 <= written(0) - far < slack
    # After that Linux compares with the 0 that was written.
    assert 0 <= written(far + second // 2) - (far + second // 2) < slack


# --- the timer of the local APIC ------------------------------------------------------------------------
LVTT, TMICT, TMCCT, TDCR, SPIV = 0x320, 0x380, 0x390, 0x3E0, 0xF0
DEADLINE, PERIODIC, ONE_SHOT = 0x40041, 0x20041, 0x41
TSC_DEADLINE = 0x6E0


class Apic:
    """The page of KVM_GET_LAPIC."""

    def __init__(self, vmm: Vmm) -> None:
        self.vmm = vmm
        self.read()

    def read(self) -> None:
        self.page = bytearray(self.vmm.get("KVM_GET_LAPIC", "kvm_lapic_state").tobytes())

    def write(self) -> None:
        assert self.vmm.give(self.vmm.vcpu, "KVM_SET_LAPIC", bytes(self.page)) == 0
        self.read()

    def __getitem__(self, at: int) -> int:
        return int.from_bytes(self.page[at : at + 4], "little")

    def __setitem__(self, at: int, value: int) -> None:
        self.page[at : at + 4] = value.to_bytes(4, "little")

    @property
    def due(self) -> int | None:
        """Nanoseconds until the timer of vCPU 0 fires, which is what its count is in."""
        at, now = int(self.vmm.kernel.S.vcpus[0].vapic.timer_at), int(self.vmm.host.core.t)
        khz = int(self.vmm.kernel.S.config.core_khz)
        return None if at == NEVER else (at - now) * 1_000_000 // (16 * khz)


def test_setting_the_apic_starts_its_timer():
    """kvm_apic_set_state(): a deadline goes on, one that has passed is due, and so is a count of 0."""
    vmm = Vmm()
    apic = Apic(vmm)
    apic[SPIV], apic[LVTT] = 0x1FF, DEADLINE
    apic.write()
    assert apic.due is None
    assert vmm.set((TSC_DEADLINE, vmm.read(TSC)[0] + 1_000_000)) == 1
    armed = vmm.read(TSC_DEADLINE)
    apic.write()
    assert vmm.read(TSC_DEADLINE) == armed
    khz = vmm.ioctl(vmm.vcpu, "KVM_GET_TSC_KHZ")
    assert 900_000 < apic.due * khz // 1_000_000 <= 1_000_000
    _later(vmm, 2_000_000)
    apic.write()
    assert vmm.read(TSC_DEADLINE) == armed
    assert -5000 < apic.due <= 0
    # Another mode forgets the deadline, and the count that came with it (apic_update_lvtt).
    apic[LVTT], apic[TMICT] = ONE_SHOT, 5_000_000
    apic.write()
    assert vmm.read(TSC_DEADLINE) == [0]
    assert (apic.due, apic[TMICT]) == (None, 0)
    apic[TMICT], apic[TMCCT], apic[TDCR] = 5_000_000, 2_000_000, 0xB
    apic.write()
    assert 1_900_000 < apic.due <= 2_000_000
    apic[TMCCT] = 6_000_000  # more than there is
    apic.write()
    assert 4_900_000 < apic.due <= 5_000_000
    apic[TMCCT] = 0
    apic.write()
    assert -5_000 < apic.due <= 0
    apic[LVTT], apic[TMCCT] = PERIODIC, 0
    apic.write()
    assert 4_900_000 < apic.due <= 5_000_000


def test_a_deadline_needs_its_mode_and_an_apic():
    vmm = Vmm()
    assert vmm.set((TSC_DEADLINE, 1 << 60)) == 1
    assert vmm.read(TSC_DEADLINE) == [0]
    apic = Apic(vmm)
    apic[SPIV], apic[LVTT] = 0x1FF, DEADLINE
    apic.write()
    assert vmm.set((TSC_DEADLINE, 1 << 60), (0x1B, 0xFEE0_0100)) == 2  # APIC off
    assert vmm.read(TSC_DEADLINE) == [0]
    assert vmm.set((0x1B, 0xFEE0_0900)) == 1
    assert vmm.read(TSC_DEADLINE) == [1 << 60]


# --- MSRs and CPUID -------------------------------------------------------------------------------------
def test_the_list_of_msrs_is_kvms():
    """A counter once, nothing of KVM_GET_SREGS, no register that only clears."""
    vmm = Vmm()
    at = vmm.page((200).to_bytes(4, "little"))
    assert vmm.ioctl(vmm.kvm, "KVM_GET_MSR_INDEX_LIST", at) == 0
    n = vmm.host.get_user(at, 4)
    found = {vmm.host.get_user(at + 4 + 4 * k, 4) for k in range(n)}
    assert len(found) == n
    pmu = {0x38D, 0x38E, 0x38F, 0x3F1, 0x3F2, 0x600}
    pmu |= {*range(0x309, 0x30C), *range(0xC1, 0xC9), *range(0x186, 0x18E)}
    calls = {0xC000_0081, 0xC000_0082, 0xC000_0083, 0xC000_0084, 0xC000_0102, 0xC000_0103}
    assert found == pmu | calls | {TSC, TSC_DEADLINE, 0x345, 0x1A0, 0x174, 0x175, 0x176, 0x277, 0x1FC}
    assert not {0x390, 0x4C1, 0x1B, 0x1D9, 0xC000_0080, 0xC000_0100, 0x49} & found
    assert vmm.give(vmm.kvm, "KVM_GET_MSR_INDEX_LIST", (1).to_bytes(4, "little")) == errno("E2BIG")


@pytest.mark.parametrize(("mode", "cpu", "shown"), [
    ("emulated", "spr", True), ("emulated", "skx", False), ("passthrough", "spr", False),
    ("none", "spr", False),
])  # fmt: skip
def test_the_debug_store_is_supported_with_pebs(mode, cpu, shown):
    leaves = {leaf: rest for leaf, *rest in supported_leaves(host_model(cpu), modes.MODES[mode], 3)}
    _, _, ecx, edx = leaves[1]
    assert (bool(ecx & 1 << 2), bool(edx & 1 << 21)) == (shown, shown)


def _with_leaf(vmm: Vmm, leaf: int, **changed: int) -> int:
    """KVM_SET_CPUID2 of what is supported, with the registers of one leaf changed."""
    at = vmm.supported()
    leaves = {n: entry.copy() for n, entry in vmm.leaves(at).items()}
    for name, value in changed.items():
        leaves[leaf][name] = value
    data = vmm.host.copy_from_user(at, 8) + b"".join(e.tobytes() for e in leaves.values())
    return vmm.give(vmm.vcpu, "KVM_SET_CPUID2", data)


@MODES
def test_pdcm_decides_on_perf_capabilities(mode):
    """PERF_CAPABILITIES goes by CPUID.1:ECX[15], not by the PMU's version; for the VMM only since 6.12."""
    vmm = Vmm(mode, cpuid=False)
    assert _with_leaf(vmm, 0xA, eax=0) == 0  # version 0
    assert vmm.set((0x345, 0x2000)) == 1
    assert vmm.read(0x345) == [0x2000]
    vmm.load(code("mov ecx, 0x345\nrdmsr\nout 0x80, al"))
    assert vmm.run() == 0
    assert int(vmm.kvm_run["exit_reason"]) == constant("KVM_EXIT_IO")
    assert int(registers(vmm)["rax"]) == 0x2000

    vmm = Vmm(mode, cpuid=False)
    ecx = int(vmm.leaves(vmm.supported())[1]["ecx"])
    assert _with_leaf(vmm, 1, ecx=ecx & ~(1 << 15)) == 0
    old_kernel = mode == "passthrough"
    assert vmm.set((0x345, 0), (0x345, 0x2000)) == 1 + old_kernel
    assert vmm.read(0x345) == [0x2000 * old_kernel]
    assert vmm.set((0x4C1, 0)) == 0  # nor has it full-width writes
    vmm.load(code("mov ecx, 0x345\nrdmsr\nout 0x80, al"))
    assert vmm.run() == 0
    assert int(vmm.kvm_run["exit_reason"]) == constant("KVM_EXIT_SHUTDOWN")


def test_cpuid_of_a_disabled_apic():
    """KVM_GET_CPUID2 shows the bit as the guest sees it, and what it showed may be set again later."""
    vmm = Vmm()
    at = vmm.page(STRUCTS["kvm_cpuid2"].new(nent=64).tobytes())
    for base, flag in ((0xFEE0_0900, 1 << 9), (0xFEE0_0100, 0)):
        assert vmm.set((0x1B, base)) == 1
        vmm.host.put_user(at, 64, 4)
        assert vmm.ioctl(vmm.vcpu, "KVM_GET_CPUID2", at) == 0
        assert int(vmm.leaves(at)[1]["edx"]) & 1 << 9 == flag
    vmm.load(code("hlt"))
    vmm.kernel.S.vcpus[0].launched = 1
    assert vmm.ioctl(vmm.vcpu, "KVM_SET_CPUID2", at) == 0
    assert vmm.set((0x1B, 0xFEE0_0900)) == 1
    assert vmm.ioctl(vmm.vcpu, "KVM_SET_CPUID2", at) == 0


def test_branch_records_are_the_vmms_to_set():
    """intel_pmu_handle_lbr_msrs_access() makes the event for the VMM as for the guest."""
    vmm = Vmm(cpu="skx")
    assert vmm.set((0x345, 0x2000), (0x1C9, 7)) == 1  # PERF_CAPABILITIES says that there are none
    assert vmm.set((0x345, 0x2005), (0x1C9, 7), (0x680, 0x1234)) == 3
    assert vmm.read(0x1C9, 0x680, 0x6C0) == [7, 0x1234, 0]
    assert int(vmm.kernel.S.vcpus[0].pmu.lbr_event) >= 0
    assert vmm.set((0x6A0, 0)) == 0


# --- what public suites of KVM ask for ------------------------------------------------------------------
@EVERY_MODE
def test_feature_msrs(mode):
    """KVM_GET_MSRS on the device: what KVM supports of IA32_PERF_CAPABILITIES, and a vCPU may have."""
    vmm = Vmm(mode, cpu="skx")
    at = vmm.page((0).to_bytes(4, "little"))
    assert vmm.ioctl(vmm.kvm, "KVM_GET_MSR_FEATURE_INDEX_LIST", at) == errno("E2BIG")
    assert vmm.host.get_user(at, 4) == 1
    assert vmm.ioctl(vmm.kvm, "KVM_GET_MSR_FEATURE_INDEX_LIST", at) == 0
    index = vmm.host.get_user(at + 4, 4)
    data = STRUCTS["kvm_msrs"].new(nmsrs=2).tobytes()
    data += b"".join(STRUCTS["kvm_msr_entry"].new(index=i).tobytes() for i in (index, 0x10))
    at = vmm.page(data)
    assert vmm.ioctl(vmm.kvm, "KVM_GET_MSRS", at) == 1
    caps = vmm.host.get_user(at + 16, 8)
    assert (index, caps) == (0x345, {"none": 0, "emulated": 0x2005}.get(mode, 0x2000))
    assert vmm.set((0x345, caps)) == 1
    left = vmm.left
    for bit in range(64):  # what is not in it is refused
        vmm.left = left
        assert caps >> bit & 1 or vmm.set((0x345, caps | 1 << bit)) == 0
    assert vmm.ioctl(vmm.kvm, "KVM_CHECK_EXTENSION", constant("KVM_CAP_GET_MSR_FEATURES")) == 1


@EVERY_MODE
def test_newer_ioctls_are_those_of_the_kernel(mode):
    vmm, new = Vmm(mode), mode != "passthrough"
    for name in ("USER_MEMORY2", "ONE_REG"):
        assert vmm.ioctl(vmm.vm, "KVM_CHECK_EXTENSION", constant(f"KVM_CAP_{name}")) == new
    region = STRUCTS["kvm_userspace_memory_region2"].new(
        slot=1, guest_phys_addr=1 << 30, memory_size=4096, userspace_addr=vmm.ram
    )
    refused = 0 if new else errno("ENOTTY")
    assert vmm.give(vmm.vm, "KVM_SET_USER_MEMORY_REGION2", region.tobytes()) == refused
    region["flags"] = 4  # KVM_MEM_GUEST_MEMFD
    assert vmm.give(vmm.vm, "KVM_SET_USER_MEMORY_REGION2", region.tobytes()) < 0
    lstar = 0x2030_0002_C000_0082
    at = vmm.page((0x1234).to_bytes(8, "little"))

    def one(name: str, ident: int) -> int:
        row = STRUCTS["kvm_one_reg"].new(id=ident, addr=at)
        return vmm.give(vmm.vcpu, f"KVM_{name}_ONE_REG", row.tobytes())

    assert one("SET", lstar) == (0 if new else errno("EINVAL"))
    if new:
        assert vmm.read(0xC000_0082) == [0x1234]
        vmm.host.put_user(at, 0, 8)
        assert one("GET", lstar) == 0
        assert vmm.host.get_user(at, 8) == 0x1234
    for wrong in (lstar + (1 << 32), lstar - (1 << 60), 0x2030_0002_0000_5555):
        assert one("GET", wrong) == one("SET", wrong) == errno("EINVAL")
    khz = vmm.ioctl(vmm.vm, "KVM_GET_TSC_KHZ")
    assert khz == vmm.ioctl(vmm.vcpu, "KVM_GET_TSC_KHZ") > 0
    assert vmm.ioctl(vmm.vm, "KVM_SET_TSC_KHZ", khz + 1) == errno("EINVAL")
    assert vmm.ioctl(vmm.vm, "KVM_SET_TSC_KHZ", khz) == 0


@MODES
def test_flags_of_user_space_msrs(mode):
    """userspace_msr_exit_test: each bit of three masks is taken if KVM names it, else EINVAL."""
    vmm = Vmm(mode)
    bitmap = vmm.page(b"\xff")
    valid = {"cap": 7, "filter": 1, "range": 3}
    left = vmm.left
    for bit in range(32):
        vmm.left = left
        cap = STRUCTS["kvm_enable_cap"].new(cap=constant("KVM_CAP_X86_USER_SPACE_MSR"))
        cap["args"][0] = 1 << bit
        found = {"cap": vmm.give(vmm.vm, "KVM_ENABLE_CAP", cap.tobytes())}
        for name in ("filter", "range"):
            given = STRUCTS["kvm_msr_filter"].new(flags=1 << bit if name == "filter" else 0)
            first = given["ranges"][0]
            first["flags"], first["nmsrs"], first["bitmap"] = 1 if name == "filter" else 1 << bit, 8, bitmap
            found[name] = vmm.give(vmm.vm, "KVM_X86_SET_MSR_FILTER", given.tobytes())
        for name, answer in found.items():
            assert answer == (0 if valid[name] >> bit & 1 else errno("EINVAL")), (name, bit)
