"""System calls of host programs: rare, so plain Python over the same record, nothing kept beside it."""

from __future__ import annotations

from typing import Any

from vpmu_emu.linux.calls import CALL_WAIT
from vpmu_emu.linux.state import (
    ENTERED_FAULT,
    ENTERED_KVM_RUN,
    ENTERED_NOT,
    ENTERED_SYSCALL,
    INSIDE_KERNEL,
)
from vpmu_emu.linux.syscalls import files, kvm, kvm_vcpu, mm, perf, signals, tasks
from vpmu_emu.linux.syscalls.host import MASK64, Errno, Host, Restart, failed, signed
from vpmu_emu.machine.state import RAX, RDI, RDX, RSI
from vpmu_emu.tables.linux import ERRNO, SYSCALLS

__all__ = ["Errno", "Host", "Restart", "failed", "handle", "kvm", "signed"]

ARGUMENTS = (RDI, RSI, RDX, 10, 8, 9)

FUNCTIONS: dict[int, tuple[Any, int]] = {
    number: (function, len(row.args))
    for number, row in SYSCALLS.items()
    for module in (files, mm, perf, signals, tasks)
    if (function := getattr(module, f"sys_{row.name}", None))
}
"""The system calls that there are: function and number of arguments."""


def handle(host: Host) -> None:
    """Do what the current task of `S.this_cpu` left its program for.

    That is a system call, whose result is in RAX afterwards, or an exception, which ends the process. The
    task may be asleep, dead or no longer the one to run then; `percpu.need_resched` says so. If another
    core has to come out of its guest first, nothing has changed and `task.entered` stays as it is.
    """
    host.S.percpu[host.cpu].inside = INSIDE_KERNEL
    task = host.task
    at = int(task.entered)
    try:
        if at == ENTERED_SYSCALL:
            result = _call(host, task)
            if task.entered:  # it still is
                host.core.regs[RAX] = result & MASK64
        elif at == ENTERED_FAULT:
            tasks.fatal_signal(host, int(task.fault))
        elif at == ENTERED_KVM_RUN:
            host.core.regs[RAX] = kvm_vcpu.finish_run(host, task) & MASK64
    except Restart as wait:
        host.kernel_call(CALL_WAIT, wait.cpu)
        return
    task.entered = ENTERED_NOT


def _call(host: Host, task: Any) -> int:
    regs = host.core.regs
    known = FUNCTIONS.get(int(regs[RAX]) & 0xFFFFFFFF)
    if known is None:
        return -ERRNO["ENOSYS"]
    function, n = known
    try:
        return int(function(host, task, *(int(regs[r]) for r in ARGUMENTS[:n])))
    except Errno as error:
        return -error.number
