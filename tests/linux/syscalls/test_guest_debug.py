"""A VMM debugs its guest: KVM_SET_GUEST_DEBUG, KVM_EXIT_DEBUG, and the debug registers as state."""

from __future__ import annotations

from typing import Any

import pytest

from tests.linux.syscalls.test_kvm import EVTSEL0, GLOBAL_CTRL, INSTRUCTIONS, PMC0, Vmm, errno
from tests.linux.syscalls.test_kvm_vcpu import FEP, change_events, code, events, registers
from vpmu_emu.tables.linux import STRUCTS, constant

pytestmark = pytest.mark.uncompiled

MODES = pytest.mark.parametrize("mode", ["emulated", "passthrough", "mediated"])
START = 0x1000
DR6, DR7 = 0xFFFF_0FF0, 0x400
ENABLE, SINGLESTEP, USE_SW_BP, USE_HW_BP, INJECT_DB, INJECT_BP = (
    constant(f"KVM_GUESTDBG_{name}")
    for name in ("ENABLE", "SINGLESTEP", "USE_SW_BP", "USE_HW_BP", "INJECT_DB", "INJECT_BP")
)
TF, RF, BS, BD = 1 << 8, 1 << 16, 1 << 14, 1 << 13


def debug(vmm: Vmm, control: int, *db: int, dr7: int = DR7) -> int:
    values = {"control": control, "arch.debugreg": [*db, *[0] * (7 - len(db)), dr7]}
    return vmm.give(
        vmm.vcpu, "KVM_SET_GUEST_DEBUG", STRUCTS["kvm_guest_debug"].new(**values).tobytes()
    )


def debugregs(vmm: Vmm) -> Any:
    return vmm.get("KVM_GET_DEBUGREGS", "kvm_debugregs")


def set_debugregs(vmm: Vmm, **values: Any) -> int:
    row = debugregs(vmm)
    for name, value in values.items():
        row[name] = value
    return vmm.give(vmm.vcpu, "KVM_SET_DEBUGREGS", row.tobytes())


def loaded(text: str, mode: str = "emulated") -> Vmm:
    vmm = Vmm(mode)
    vmm.kernel.S.config.force_emulation_prefix = 1
    vmm.load(code(text.replace("; ", "\n")))
    return vmm


def stop(vmm: Vmm) -> tuple[int, int, int, int]:
    """KVM_RUN until KVM_EXIT_DEBUG: exception, place from the start, DR6 less what it has at rest, DR7."""
    assert vmm.run() == 0
    run = vmm.kvm_run
    assert int(run["exit_reason"]) == constant("KVM_EXIT_DEBUG")
    dr6 = int(run["debug.arch.dr6"]) ^ DR6
    exception, at = int(run["debug.arch.exception"]), int(run["debug.arch.pc"]) - START
    return exception, at, dr6, int(run["debug.arch.dr7"])


def step(vmm: Vmm) -> int:
    exception, at, dr6, _ = stop(vmm)
    assert (exception, dr6) == (1, BS)
    return at


def change_mp_state(vmm: Vmm) -> None:
    """The vCPU runs without waiting for a startup message."""
    row = STRUCTS["kvm_mp_state"].new(mp_state=constant("KVM_MP_STATE_RUNNABLE"))
    assert vmm.give(vmm.vcpu, "KVM_SET_MP_STATE", row.tobytes()) == 0


def out(vmm: Vmm) -> int:
    """KVM_RUN until the guest's next OUT: its port."""
    assert vmm.run() == 0
    assert int(vmm.kvm_run["exit_reason"]) == constant("KVM_EXIT_IO")
    return int(vmm.kvm_run["io.port"])


# --- KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS -------------------------------------------------------------
def test_capabilities():
    vmm = Vmm()
    for name in ("SET_GUEST_DEBUG", "DEBUGREGS"):
        assert vmm.ioctl(vmm.kvm, "KVM_CHECK_EXTENSION", constant(f"KVM_CAP_{name}")) == 1


def test_registers_after_reset_and_what_may_be_set():
    vmm = Vmm()
    row = debugregs(vmm)
    assert ([int(v) for v in row["db"]], int(row["dr6"]), int(row["dr7"])) == ([0] * 4, DR6, DR7)
    high = (1 << 64) - 3
    assert set_debugregs(vmm, db=[1, 2, 3, high], dr6=DR6 | 5, dr7=DR7 | 0x302) == 0
    row = debugregs(vmm)
    assert [int(v) for v in row["db"]] == [1, 2, 3, high]
    assert (int(row["dr6"]), int(row["dr7"])) == (DR6 | 5, DR7 | 0x302)
    before = row.tobytes()
    for bad in ({"dr6": 1 << 32}, {"dr7": 1 << 63}, {"flags": 1}):
        assert set_debugregs(vmm, **bad) == errno("EINVAL")
        assert debugregs(vmm).tobytes() == before


@MODES
def test_the_guest_reads_what_the_vmm_set_and_the_reverse(mode):
    text = "mov r8, dr1; mov r9, dr6; mov r10, dr7; mov eax, 0x77; mov dr3, rax; mov eax, 4; mov dr6, rax"
    vmm = loaded(
        text + "; mov eax, 0x500; mov dr7, rax; out 0x80, al; mov r11, dr3; out 0x81, al", mode
    )
    assert set_debugregs(vmm, db=[1, 0x5555, 3, 4], dr6=DR6 | BD, dr7=DR7 | 0x100) == 0
    assert out(vmm) == 0x80
    regs, row = registers(vmm), debugregs(vmm)
    assert [int(regs[f"r{n}"]) for n in (8, 9, 10)] == [0x5555, DR6 | BD, DR7 | 0x100]
    assert [int(v) for v in row["db"]] == [1, 0x5555, 3, 0x77]
    assert (int(row["dr6"]), int(row["dr7"])) == (DR6 | 4, 0x500)
    assert set_debugregs(vmm, db=[9, 9, 9, 9]) == 0
    assert out(vmm) == 0x81
    assert int(registers(vmm)["r11"]) == 9


@MODES
def test_two_vcpus_have_their_own(mode):
    text = "mov dr0, rax; mov dr7, rbx; out 0x80, al; mov r8, dr0; mov r9, dr7; out 0x81, al"
    vmm = loaded(text, mode)
    first, second = vmm.vcpu, vmm.ioctl(vmm.vm, "KVM_CREATE_VCPU", 1)
    for number, value in ((first, 0x111), (second, 0x222)):
        vmm.vcpu = number
        vmm.load(code(text.replace("; ", "\n")))
        regs = registers(vmm)
        regs["rax"], regs["rbx"] = value, 0x402 | value << 16
        assert vmm.give(vmm.vcpu, "KVM_SET_REGS", regs.tobytes()) == 0
    change_mp_state(vmm)
    for _ in range(2):
        for number in (first, second):
            vmm.vcpu = number
            assert vmm.run() == 0
    for number, value in ((first, 0x111), (second, 0x222)):
        vmm.vcpu = number
        regs = registers(vmm)
        assert (int(regs["r8"]), int(regs["r9"])) == (value, 0x402 | value << 16)
        assert int(debugregs(vmm)["db"][0]) == value


# --- the VMM steps ------------------------------------------------------------------------------------
@MODES
def test_single_step_goes_over_every_instruction_once(mode):
    # one of the guest, one that exits, one behind the forced prefix, one that goes to the VMM first
    vmm = loaded(f"nop; cpuid; {FEP}nop; out 0x80, al; nop; nop", mode)
    assert debug(vmm, ENABLE | SINGLESTEP) == 0
    assert not int(registers(vmm)["rflags"]) & TF
    assert [step(vmm) for _ in range(3)] == [1, 3, 9]
    assert out(vmm) == 0x80
    assert [step(vmm) for _ in range(2)] == [11, 12]
    assert int(debugregs(vmm)["dr6"]) == DR6  # that of the guest knows nothing
    assert debug(vmm, 0) == 0
    assert not int(registers(vmm)["rflags"]) & TF


@MODES
def test_single_step_over_sti_and_mov_ss(mode):
    vmm = loaded("sti; nop; xor eax, eax; mov ss, eax; nop; nop", mode)
    assert debug(vmm, ENABLE | SINGLESTEP) == 0
    assert [step(vmm) for _ in range(4)] == [1, 2, 4, 7]


@MODES
def test_steps_change_no_count_of_the_guest(mode):
    text = "nop; cpuid; nop; nop; out 0x80, al"
    counts = []
    for control in (0, ENABLE | SINGLESTEP):
        vmm = loaded(text, mode)
        assert vmm.set((GLOBAL_CTRL, 1), (EVTSEL0, INSTRUCTIONS), (PMC0, 1000)) == 3
        assert debug(vmm, control) == 0
        for _ in range(4 if control else 0):
            step(vmm)
        assert out(vmm) == 0x80
        counts.append(vmm.read(PMC0))
    assert counts[0] == counts[1] == [1004]


# --- the VMM's breakpoints ----------------------------------------------------------------------------
@MODES
def test_hardware_breakpoints_of_the_vmm(mode):
    vmm = loaded("nop; mov [rsp - 64], eax; nop; mov r8, dr0; mov r9, dr7; out 0x80, al", mode)
    rsp = int(registers(vmm)["rsp"])
    assert debug(vmm, ENABLE | USE_HW_BP, START + 1, rsp - 64, dr7=DR7 | 0xA | 0xD << 20) == 0
    assert stop(vmm) == (1, 1, 1, DR7 | 0xA | 0xD << 20)
    assert debug(vmm, ENABLE | USE_HW_BP, 0, rsp - 64, dr7=DR7 | 0xA | 0xD << 20) == 0
    assert stop(vmm)[:3] == (1, 5, 2)
    assert out(vmm) == 0x80
    regs = registers(vmm)
    assert (int(regs["r8"]), int(regs["r9"])) == (0, DR7)  # the guest sees its own


@MODES
def test_a_hardware_breakpoint_on_what_the_emulator_does(mode):
    vmm = loaded(f"{FEP}nop; out 0x80, al", mode)
    assert debug(vmm, ENABLE | USE_HW_BP, START + 5, dr7=DR7 | 2) == 0
    assert stop(vmm)[:3] == (1, 5, 1)
    assert debug(vmm, 0) == 0
    assert out(vmm) == 0x80


@MODES
def test_software_breakpoints_of_the_vmm(mode):
    vmm = loaded("nop; int3; out 0x80, al", mode)
    assert debug(vmm, ENABLE | USE_SW_BP) == 0
    assert stop(vmm)[:3] == (3, 1, 0)
    regs = registers(vmm)
    assert int(regs["rip"]) == START + 1
    regs["rip"] = START + 2
    assert vmm.give(vmm.vcpu, "KVM_SET_REGS", regs.tobytes()) == 0
    assert out(vmm) == 0x80


@MODES
def test_what_is_not_enabled_is_the_guests(mode):
    vmm = loaded("int3", mode)
    assert debug(vmm, USE_SW_BP | SINGLESTEP) == 0
    assert vmm.run() == 0
    assert int(vmm.kvm_run["exit_reason"]) == constant("KVM_EXIT_SHUTDOWN")  # no IDT


def test_injection_and_what_is_refused():
    vmm = loaded("nop")
    assert debug(vmm, 1 << 20) == errno("EINVAL")
    for control, vector in ((INJECT_DB, 1), (INJECT_BP, 3)):
        assert debug(vmm, control) == 0
        assert (int(events(vmm)["exception.injected"]), int(events(vmm)["exception.nr"])) == (
            1,
            vector,
        )
        assert debug(vmm, control) == errno("EBUSY")
        change_events(vmm, exception_injected=0)


# --- the guest debugs itself --------------------------------------------------------------------------
@MODES
def test_general_detect_of_a_debugged_guest_goes_to_the_vmm(mode):
    vmm = loaded("mov eax, 0x2400; mov dr7, rax; mov r8, dr6; out 0x80, al", mode)
    assert debug(vmm, ENABLE | USE_HW_BP, dr7=DR7 | 1 << 13) == 0
    exception, at, dr6, dr7 = stop(vmm)
    assert (exception, at, dr6, dr7) == (1, 5, BD, DR7 | 1 << 13)


@MODES
@pytest.mark.parametrize("target", ["rax", "rsp", "r15"])
def test_the_emulators_mov_dr(mode, target):
    text = f"mov eax, 0x1234; {FEP}mov dr2, rax; {FEP}mov {target}, dr2; {FEP}mov r9, dr7; out 0x80, al"
    vmm = loaded(text, mode)
    assert out(vmm) == 0x80
    assert int(registers(vmm)[target]) == 0x1234
    assert int(registers(vmm)["r9"]) == DR7
    assert int(debugregs(vmm)["db"][2]) == 0x1234
