"""Signals as a VMM uses them: blocked, taken, ending KVM_RUN; and what the others do."""

from __future__ import annotations

import pytest

from tests.linux.syscalls.kernel import Kernel
from tests.linux.syscalls.test_kvm import Vmm, errno
from tests.linux.syscalls.test_kvm_vcpu import change_events, code, events
from vpmu_emu.linux.state import KVM_REQ_PMI
from vpmu_emu.tables.linux import constant

pytestmark = pytest.mark.uncompiled

BLOCK, UNBLOCK, SETMASK = (constant(f"SIG_{name}") for name in ("BLOCK", "UNBLOCK", "SETMASK"))
USR1, USR2, TERM, KILL = (constant(f"SIG{name}") for name in ("USR1", "USR2", "TERM", "KILL"))
ALL = (1 << 64) - 1


def mask(*signals: int) -> int:
    return sum(1 << (sig - 1) for sig in signals)


class Process(Kernel):
    """One program, stopped at its first instruction."""

    def __init__(self, *bodies: str) -> None:
        super().__init__(*bodies)
        self.start()
        self.room = self.page(size=4096)

    def put(self, value: int, at: int = 0) -> int:
        self.host.put_user(self.room + at, value, 8)
        return self.room + at

    def block(self, how: int, *signals: int) -> int:
        return self.call("rt_sigprocmask", how, self.put(mask(*signals)), self.room + 8, 8)

    def take(self, *signals: int) -> int:
        self.put(0, 32)
        self.put(0, 40)
        return self.call("rt_sigtimedwait", self.put(mask(*signals)), 0, self.room + 32, 8)


def test_what_is_blocked_waits_until_it_is_taken():
    p = Process()
    pid = p.call("getpid")
    assert p.block(BLOCK, USR1, USR2) == 0
    assert p.take(USR1, USR2) == errno("EAGAIN")
    assert p.call("tgkill", pid, pid, USR2) == p.call("kill", pid, USR1) == p.call("kill", pid, USR1) == 0
    assert [p.take(USR1, USR2), p.take(USR1), p.take(USR1, USR2)] == [USR1, errno("EAGAIN"), USR2]
    assert p.exit_codes() == [None]


def test_masks_are_linuxs():
    p = Process()
    assert p.block(SETMASK, USR1, KILL) == 0
    assert p.block(UNBLOCK, USR1) == 0
    assert p.host.get_user(p.room + 8, 8) == mask(USR1)  # SIGKILL cannot be blocked
    assert p.block(9, USR1) == errno("EINVAL")
    assert p.call("rt_sigprocmask", BLOCK, 0, 0, 4) == errno("EINVAL")
    assert p.call("rt_sigprocmask", BLOCK, 8, 0, 8) == errno("EFAULT")
    assert p.call("rt_sigprocmask", 9, 0, 0, 8) == 0  # nothing is set
    assert p.call("rt_sigtimedwait", p.room, 0, 0, 4) == errno("EINVAL")


@pytest.mark.parametrize("name", ["kill", "tgkill"])
def test_wrong_signals_and_threads(name):
    p = Process()
    pid = p.call("getpid")
    to = (pid, pid) if name == "tgkill" else (pid,)
    nobody = (pid, 99) if name == "tgkill" else (99,)
    assert p.call(name, *to, 0) == 0
    assert p.call(name, *to, 65) == p.call(name, *to, -1) == errno("EINVAL")
    assert p.call(name, *nobody, USR1) == errno("ESRCH")
    assert p.call("tgkill", 0, pid, USR1) == errno("EINVAL")


@pytest.mark.parametrize("sig", [USR1, TERM, KILL])
def test_what_is_not_blocked_ends_the_process(sig):
    p = Process()
    p.block(BLOCK, KILL)
    pid = p.call("getpid")
    assert p.call("kill", pid, sig) == 0
    assert p.exit_codes() == [-sig]


def test_unblocking_ends_it_too_and_some_are_ignored():
    p = Process()
    pid = p.call("getpid")
    assert p.call("kill", pid, 17) == 0
    assert p.exit_codes() == [None]
    p.block(BLOCK, USR1)
    assert p.call("kill", pid, USR1) == 0
    p.block(UNBLOCK, USR1)
    assert p.exit_codes() == [-USR1]


WAITS = """
    .text
    .globl _start
_start:
    mov edi, SIG_BLOCK
    lea rsi, [rip + usr1]
    xor edx, edx
    mov r10d, 8
    CALL_LINUX rt_sigprocmask
    lea rdi, [rip + usr1]
    xor esi, esi
    xor edx, edx
    mov r10d, 8
    CALL_LINUX rt_sigtimedwait
    EXIT eax
    .data
usr1: .quad 1 << (SIGUSR1 - 1)
"""
SENDS = """
    .text
    .globl _start
_start:
    mov r12d, 3000
1:  dec r12d
    jnz 1b
    mov edi, 1
    mov esi, SIGUSR1
    CALL_LINUX kill
    EXIT 0
"""


def test_without_a_timeout_it_waits():
    kernel = Kernel(WAITS, SENDS).run(5_000_000)
    assert kernel.exit_codes() == [USR1, 0]


def test_another_process_is_ended():
    kernel = Kernel("    .text\n    .globl _start\n_start: jmp _start\n", SENDS).run(5_000_000)
    assert kernel.exit_codes() == [-USR1, 0]


# --- the mask of KVM_RUN --------------------------------------------------------------------------------
def test_kvm_set_signal_mask():
    vmm = Vmm()
    vcpu = vmm.kernel.S.vcpus[0]
    at = vmm.page((8).to_bytes(4, "little") + mask(USR2, KILL).to_bytes(8, "little"))
    assert vmm.ioctl(vmm.vcpu, "KVM_SET_SIGNAL_MASK", at) == 0
    assert (int(vcpu.sigset_active), int(vcpu.sigset)) == (1, mask(USR2))
    short = vmm.page((4).to_bytes(4, "little"))
    assert vmm.ioctl(vmm.vcpu, "KVM_SET_SIGNAL_MASK", short) == errno("EINVAL")
    assert vmm.ioctl(vmm.vcpu, "KVM_SET_SIGNAL_MASK", 8) == errno("EFAULT")
    assert vmm.ioctl(vmm.vcpu, "KVM_SET_SIGNAL_MASK", 0) == 0
    assert not vcpu.sigset_active


class Running(Vmm):
    """A VMM that has SIGUSR1 blocked but in KVM_RUN, and its guest in memory."""

    def __init__(self, text: str, mode: str = "emulated") -> None:
        super().__init__(mode)
        self.load(code(text))
        at = self.page(mask(USR1).to_bytes(8, "little"))
        assert self.kernel.call("rt_sigprocmask", BLOCK, at, 0, 8) == 0
        self.mask(0)

    def mask(self, value: int) -> None:
        at = self.page((8).to_bytes(4, "little") + value.to_bytes(8, "little"))
        assert self.ioctl(self.vcpu, "KVM_SET_SIGNAL_MASK", at) == 0

    def send(self) -> None:
        pid = self.kernel.call("getpid")
        assert self.kernel.call("tgkill", pid, pid, USR1) == 0


@pytest.mark.parametrize("mode", ["emulated", "passthrough", "mediated"])
def test_a_pending_signal_has_kvm_run_do_requests_and_enter_nothing(mode):
    vmm = Running("mov eax, 7\nout 0x10, al", mode)
    vcpu = vmm.kernel.S.vcpus[0]
    vmm.send()
    for _ in range(2):  # as often as it is called
        vcpu.requests = int(vcpu.requests) | int(KVM_REQ_PMI)
        assert vmm.run() == errno("EINTR")
        assert int(vmm.kvm_run["exit_reason"]) == constant("KVM_EXIT_INTR")
        assert not int(vcpu.requests) & int(KVM_REQ_PMI)
        assert int(vcpu.entries) == 0
    vmm.mask(mask(USR1))  # blocked in KVM_RUN too
    assert vmm.run() == 0
    assert int(vmm.kvm_run["exit_reason"]) == constant("KVM_EXIT_IO")


def test_immediate_exit_comes_before_requests():
    vmm = Running("mov eax, 7\nout 0x10, al")
    vcpu = vmm.kernel.S.vcpus[0]
    vmm.send()
    vcpu.requests = int(vcpu.requests) | int(KVM_REQ_PMI)
    vmm.kvm_run["immediate_exit"] = 1
    assert vmm.run() == errno("EINTR")
    assert int(vcpu.requests) & int(KVM_REQ_PMI)


def test_what_would_have_been_injected_waits():
    """vmx_cancel_injection(): an exception that the VMM queued, and an NMI."""
    vmm = Running("mov eax, 7\nout 0x10, al")
    change_events(vmm, exception_injected=1, exception_nr=6)
    assert vmm.ioctl(vmm.vcpu, "KVM_NMI") == 0
    vmm.send()
    for _ in range(2):
        assert vmm.run() == errno("EINTR")
        found = events(vmm)
        assert (int(found["exception.injected"]), int(found["exception.nr"])) == (1, 6)
        assert int(found["nmi.pending"]) == 1
    change_events(vmm, exception_injected=0)
    assert vmm.run() == errno("EINTR")
    found = events(vmm)
    assert (int(found["nmi.injected"]), int(found["nmi.pending"])) == (1, 0)


def test_a_halted_vcpu_stays_halted():
    vmm = Running("mov eax, 7\nout 0x10, al")
    assert vmm.give(vmm.vcpu, "KVM_SET_MP_STATE", (3).to_bytes(4, "little")) == 0
    vmm.send()
    assert vmm.run() == errno("EINTR")
    assert int(vmm.get("KVM_GET_MP_STATE", "kvm_mp_state")["mp_state"]) == 3
