"""Signals, as far as a VMM needs them: blocked ones wait for who asks for them, others end the process.

There are no handlers. A signal that its thread has blocked, but not in the mask that KVM_SET_SIGNAL_MASK
gives to KVM_RUN, has KVM_RUN come back with EINTR. kernel/signal.c.
"""

from __future__ import annotations

from typing import Any

from vpmu_emu.linux import calls
from vpmu_emu.linux.state import TASK_INTERRUPTIBLE
from vpmu_emu.linux.syscalls.host import MASK64, Errno, Host, Restart, signed
from vpmu_emu.linux.syscalls.tasks import do_exit, do_group_exit, sleep_until
from vpmu_emu.machine.state import NEVER
from vpmu_emu.tables.linux import STRUCTS, constant

NSIG = 64
SIGSET = 8  # sizeof(sigset_t)
SIG_BLOCK, SIG_UNBLOCK, SIG_SETMASK = (constant(f"SIG_{name}") for name in ("BLOCK", "UNBLOCK", "SETMASK"))
SIGKILL, SIGSTOP = constant("SIGKILL"), constant("SIGSTOP")
# Their default is to do nothing (signal(7)).
IGNORED = frozenset(constant(name) for name in ("SIGCHLD", "SIGCONT", "SIGURG", "SIGWINCH"))


def bit(sig: int) -> int:
    """The place of a signal in a mask."""
    return 1 << (sig - 1)


UNBLOCKABLE = bit(SIGKILL) | bit(SIGSTOP)


def send_signal(host: Host, row: int, sig: int) -> None:
    """A thread is sent a signal that it has blocked: it waits, and KVM_RUN may come back for it.

    Whoever sends it need not be a program: `vpmu run --save` does, too.
    """
    task = host.S.tasks[row]
    task.pending = int(task.pending) | bit(sig)
    if int(task.sigwait) & bit(sig):
        host.kernel_call(calls.CALL_WAKE_UP, row)
        return
    k, cpu = int(task.vcpu), int(task.on_cpu)
    if k < 0:
        return
    vcpu = host.S.vcpus[k]
    if (int(vcpu.sigset) if vcpu.sigset_active else int(task.blocked)) & bit(sig):
        return
    if int(task.state) == TASK_INTERRUPTIBLE:  # its guest is halted
        host.kernel_call(calls.CALL_WAKE_UP, row)
    elif cpu >= 0 and host.S.cores[cpu].vmx.nonroot:
        host.kernel_call(calls.CALL_KICK, cpu)


def _blocks(host: Host, task: Any, sig: int) -> bool:
    return bool(int(task.blocked) & bit(sig) & ~UNBLOCKABLE)


def _kill(host: Host, rows: list[int], sig: int) -> int:
    """Send to the first thread of `rows` that has it blocked; who has not is ended by it, all its process.

    Raises:
        Restart: a thread of it is on a core that is in a guest; nothing has been undone, call again.
    """
    if not 0 <= sig <= NSIG:
        raise Errno("EINVAL")
    if not rows:
        raise Errno("ESRCH")
    if not sig:
        return 0
    task = host.S.tasks[rows[0]]
    if _blocks(host, task, sig):
        send_signal(host, rows[0], sig)
    elif sig == SIGSTOP:
        raise Errno("ENOSYS")  # nothing stops a process here
    elif sig not in IGNORED:
        if int(task.tgid) == int(host.task.tgid):
            do_group_exit(host, host.task, -sig)
        else:
            for row, other in list(host.tasks()):
                if int(other.tgid) == int(task.tgid):
                    do_exit(host, row, -sig)
    return 0


def sys_kill(host: Host, task: Any, pid: int, sig: int) -> int:
    """Send a signal to a process: its first thread takes it."""
    wanted = signed(pid, 32)
    rows = [row for row, each in host.tasks() if int(each.tgid) == wanted and wanted > 0]
    return _kill(host, rows, signed(sig, 32))


def sys_tgkill(host: Host, task: Any, tgid: int, pid: int, sig: int) -> int:
    """Send a signal to a thread."""
    group, thread = signed(tgid, 32), signed(pid, 32)
    if group <= 0 or thread <= 0:
        raise Errno("EINVAL")
    rows = [row for row, each in host.tasks() if (int(each.tgid), int(each.pid)) == (group, thread)]
    return _kill(host, rows, signed(sig, 32))


def sys_rt_sigprocmask(host: Host, task: Any, how: int, nset: int, oset: int, sigsetsize: int) -> int:
    """Which signals wait; what is unblocked and has come meanwhile ends the process."""
    if sigsetsize != SIGSET:
        raise Errno("EINVAL")
    old = int(task.blocked)
    if nset:
        given = host.get_user(nset, SIGSET)
        how = signed(how, 32)
        if how == SIG_BLOCK:
            new = old | given
        elif how == SIG_UNBLOCK:
            new = old & ~given & MASK64
        elif how == SIG_SETMASK:
            new = given
        else:
            raise Errno("EINVAL")
        task.blocked = new & ~UNBLOCKABLE
    if oset:
        host.put_user(oset, old, SIGSET)
    waits = int(task.pending) & ~int(task.blocked)
    if waits:
        sig = (waits & -waits).bit_length()
        task.pending = int(task.pending) & ~bit(sig)
        _kill(host, [host.task_row], sig)
    return 0


def sys_rt_sigtimedwait(host: Host, task: Any, uthese: int, uinfo: int, uts: int, sigsetsize: int) -> int:
    """Take a signal that waits, by its number: now (a timeout of 0), or once there is one (none)."""
    if sigsetsize != SIGSET:
        raise Errno("EINVAL")
    wanted = host.get_user(uthese, SIGSET) & ~UNBLOCKABLE
    row = STRUCTS["timespec"]
    timeout = row.read(host.copy_from_user(uts, row.size)) if uts else None
    task.sigwait = 0
    found = int(task.pending) & wanted
    if found:
        sig = (found & -found).bit_length()
        if uinfo:  # siginfo: the number alone
            host.copy_to_user(uinfo, sig.to_bytes(4, "little").ljust(128, b"\0"))
        task.pending = int(task.pending) & ~bit(sig)
        return sig
    if timeout is None:
        task.sigwait = wanted
        sleep_until(host, task, int(NEVER))
        raise Restart(host.cpu)
    if int(timeout["tv_sec"]) or int(timeout["tv_nsec"]):
        raise Errno("EINVAL")  # no other timeout is there
    raise Errno("EAGAIN")
