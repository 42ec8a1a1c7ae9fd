"""Tasks are rows of the record: made by clone, moved by affinity, gone at exit with all that they had.

kernel/fork.c, exit.c, sched/syscalls.c; a process is all tasks of one `tgid`, and they share everything.
"""

from __future__ import annotations

from typing import Any

from vpmu_emu.linux import calls
from vpmu_emu.linux.perf.inherit import perf_event_init_task
from vpmu_emu.linux.state import (
    FILE_STDOUT,
    N_TASKS,
    TASK_DEAD,
    TASK_INTERRUPTIBLE,
)
from vpmu_emu.linux.syscalls.files import close_all, leave_run, open_row
from vpmu_emu.linux.syscalls.host import MASK64, Errno, Host, failed, signed
from vpmu_emu.linux.syscalls.mm import exit_mmap, load_program, mm_create, mmput
from vpmu_emu.linux.syscalls.pagetables import TASK_SIZE
from vpmu_emu.machine import processor_flags
from vpmu_emu.machine.state import BEYOND, NEVER, RAX, REG_FS, RSP
from vpmu_emu.tables.linux import STRUCTS, constant

RFLAGS_USER = int(processor_flags.X86_EFLAGS_IF | processor_flags.X86_EFLAGS_FIXED)
X86_EFLAGS_IOPL = int(processor_flags.X86_EFLAGS_IOPL)
NS = 1_000_000_000
CPUMASK_SIZE = 8  # sizeof(cpumask_t) with up to 64 CPUs
CLOCKS = (constant("CLOCK_REALTIME"), constant("CLOCK_MONOTONIC"))

CLONE_VM, CLONE_SIGHAND, CLONE_THREAD, CLONE_SETTLS, CLONE_PARENT_SETTID, CLONE_CHILD_SETTID = (
    constant(f"CLONE_{name}")
    for name in ("VM", "SIGHAND", "THREAD", "SETTLS", "PARENT_SETTID", "CHILD_SETTID")
)
CLONE_CHILD_CLEARTID = constant("CLONE_CHILD_CLEARTID")

# the signal that an exception of a program ends it with (arch/x86/kernel/traps.c)
SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV = 4, 5, 7, 8, 11
SIGNALS = {
    0: SIGFPE, 1: SIGTRAP, 3: SIGTRAP, 6: SIGILL, 11: SIGBUS, 12: SIGBUS, 16: SIGFPE, 17: SIGBUS,
    19: SIGFPE,
}  # fmt: skip


# --- making tasks ---------------------------------------------------------------------------------------
def _free_row(host: Host) -> int:
    """A row for a new task: one never used, else the longest dead; its result is lost then."""
    S = host.S
    for k in range(N_TASKS):
        if not S.tasks[k].used:
            return k
    dead = [k for k in range(N_TASKS) if int(S.tasks[k].state) == TASK_DEAD and int(S.tasks[k].on_cpu) < 0]
    if not dead:
        raise Errno("EAGAIN")
    return min(dead, key=lambda k: int(S.tasks[k].pid))


def new_task(host: Host, row: int, *, mm: int, program: int, cpu: int) -> Any:
    """A runnable task in row `row`, its own process; registers are all zero."""
    S = host.S
    task = S.tasks[row]
    for name in task.dtype.names:
        task[name] = 0
    S.next_pid = max(1, int(S.next_pid))
    task.used = 1
    task.pid = task.tgid = S.next_pid
    S.next_pid += 1
    task.mm, task.program = mm, program
    task.state = TASK_INTERRUPTIBLE  # until wake_up_new_task()
    task.on_cpu = task.vcpu = -1
    task.cpu = cpu
    task.allowed = host.online_cpus()
    task.wake_at = NEVER
    task.vruntime = S.percpu[cpu].min_vruntime
    task.rflags = RFLAGS_USER
    return task


def spawn(host: Host, program: int, argv: list[str], envp: list[str], cpu: int = 0) -> int:
    """Start a program as a process of its own, as the first process of a boot starts: its row.

    Raises:
        LoadError: the program cannot be loaded.
        Errno: EAGAIN, ENOMEM, ENFILE: too many tasks, address spaces or files.
    """
    row = _free_row(host)
    space = mm_create(host)
    try:
        rip, rsp = load_program(host, space, host.programs[program], argv, envp)
        for fd in range(3):
            open_row(host, space, FILE_STDOUT, 0, constant("O_RDWR"), fd=fd)
    except Exception:
        close_all(host, space)
        mmput(host, space)
        raise
    task = new_task(host, row, mm=space, program=program, cpu=cpu)
    task.rip, task.regs[RSP] = rip, rsp
    host.kernel_call(calls.CALL_WAKE_UP, row)
    return row


def sys_clone(
    host: Host, task: Any, flags: int, newsp: int, parent_tid: int, child_tid: int, tls: int
) -> int:
    """A new thread of this process; a process of its own (fork) is not there: ENOSYS."""
    if flags & CLONE_THREAD and not flags & CLONE_SIGHAND:
        raise Errno("EINVAL")
    if flags & CLONE_SIGHAND and not flags & CLONE_VM:
        raise Errno("EINVAL")
    if not (flags & CLONE_THREAD and flags & CLONE_VM):
        raise Errno("ENOSYS")
    if flags & CLONE_SETTLS and tls >= TASK_SIZE:
        raise Errno("EPERM")
    S = host.S
    row = _free_row(host)
    child = new_task(host, row, mm=int(task.mm), program=int(task.program), cpu=host.cpu)
    child.tgid = task.tgid
    child.allowed = task.allowed
    child.vruntime = max(int(task.vruntime), int(child.vruntime))
    core = host.core
    child.regs = core.regs
    child.regs[RAX] = 0
    if newsp:
        child.regs[RSP] = newsp
    if flags & CLONE_SETTLS:
        child.regs[REG_FS] = tls
    child.rip = core.rip
    child.rflags = core.rflags
    if flags & CLONE_CHILD_CLEARTID:
        child.clear_child_tid = child_tid
    S.mms[int(task.mm)].users += 1
    errno = perf_event_init_task(
        S, lambda event: host.kernel_call(calls.CALL_PERF_INSTALL, event), host.task_row, row
    )
    if errno:
        do_exit(host, row, 0)
        child.used = 0
        failed(errno)
    for flag, address in ((CLONE_PARENT_SETTID, parent_tid), (CLONE_CHILD_SETTID, child_tid)):
        if flags & flag:
            _try_put(host, address, int(child.pid))
    host.charge("clone")
    host.kernel_call(calls.CALL_WAKE_UP, row)
    return int(child.pid)


def _try_put(host: Host, address: int, value: int) -> None:
    # schedule_tail(), mm_release(): nobody looks whether put_user() worked
    try:
        host.put_user(address, value, 4)
    except Errno:
        return


# --- ending them ----------------------------------------------------------------------------------------
def do_exit(host: Host, row: int, code: int) -> None:
    """End a task: its events, its share of the process and, with the last one, the process.

    Raises:
        Restart: it runs on a core that is in a guest; nothing has been undone, call again.
    """
    S = host.S
    task = S.tasks[row]
    if int(task.state) == TASK_DEAD:
        return
    cpu = int(task.on_cpu)
    with host.on_cpu(cpu):
        if int(task.vcpu) >= 0:  # killed in KVM_RUN: what it holds of the vCPU goes back
            if cpu >= 0 and int(S.percpu[cpu].vcpu) >= 0:
                host.kernel_call(calls.CALL_VCPU_PUT)
            leave_run(host, task)
        host.kernel_call(calls.CALL_PERF_EXIT_TASK, row)
        if cpu >= 0:
            host.kernel_call(calls.CALL_RESCHED, cpu)
    space = int(task.mm)
    mm = S.mms[space]
    if int(mm.users) == 1:
        close_all(host, space)
        exit_mmap(host, mm)
    task.state = TASK_DEAD
    task.exit_code = code
    task.entered = 0
    mmput(host, space)


def do_group_exit(host: Host, task: Any, code: int) -> None:
    """End every task of a process, this one last.

    Raises:
        Restart: as do_exit().
    """
    me = host.task_row
    for row, other in host.tasks():
        if int(other.tgid) == int(task.tgid) and row != me:
            do_exit(host, row, code)
    do_exit(host, me, code)


def _clear_tid(host: Host, task: Any) -> None:
    if task.clear_child_tid:
        _try_put(host, int(task.clear_child_tid), 0)
        task.clear_child_tid = 0


def sys_exit(host: Host, task: Any, error_code: int) -> int:
    """End this thread."""
    _clear_tid(host, task)
    do_exit(host, host.task_row, error_code & 0xFF)
    host.charge("do_exit")
    return 0


def sys_exit_group(host: Host, task: Any, error_code: int) -> int:
    """End this process."""
    do_group_exit(host, task, error_code & 0xFF)
    host.charge("do_exit")
    return 0


def fatal_signal(host: Host, vector: int) -> None:
    """An exception that the program cannot handle ends its process."""
    host.task.rip = host.core.rip  # for the report
    do_group_exit(host, host.task, -SIGNALS.get(vector, SIGSEGV))
    host.charge("do_exit")


# --- who am I -------------------------------------------------------------------------------------------
def sys_getpid(host: Host, task: Any) -> int:
    """Number of the process."""
    return int(task.tgid)


def sys_gettid(host: Host, task: Any) -> int:
    """Number of the thread."""
    return int(task.pid)


def sys_getcpu(host: Host, task: Any, cpu: int, node: int, unused: int) -> int:
    """The core that it runs on."""
    if cpu:
        host.put_user(cpu, host.cpu, 4)
    if node:
        host.put_user(node, 0, 4)
    return 0


def sys_iopl(host: Host, task: Any, level: int) -> int:
    """Let the program execute IN and OUT; in this kernel by RFLAGS.IOPL itself, as before Linux 5.5."""
    level = signed(level, 32) & 0xFFFFFFFF
    if level > 3:
        raise Errno("EINVAL")
    core = host.core
    core.rflags = int(core.rflags) & ~X86_EFLAGS_IOPL | level << 12
    return 0


# --- scheduling -----------------------------------------------------------------------------------------
def sys_sched_yield(host: Host, task: Any) -> int:
    """Let others run first."""
    host.S.percpu[host.cpu].need_resched = 1
    return 0


def sleep_until(host: Host, task: Any, at: int) -> None:
    """Take the current task off its core until a time; NEVER: until somebody wakes it."""
    task.state = TASK_INTERRUPTIBLE
    task.wake_at = at if at == NEVER else min(at, int(BEYOND))
    host.S.percpu[host.cpu].need_resched = 1
    host.kernel_call(calls.CALL_TIMER)


def sys_nanosleep(host: Host, task: Any, rqtp: int, rmtp: int) -> int:
    """Sleep; nothing interrupts it, so `rmtp` is never written."""
    row = STRUCTS["timespec"]
    wanted = row.read(host.copy_from_user(rqtp, row.size))
    seconds, ns = int(wanted["tv_sec"]), int(wanted["tv_nsec"])
    if seconds < 0 or not 0 <= ns < NS:
        raise Errno("EINVAL")
    host.charge("do_nanosleep")
    if seconds or ns:
        sleep_until(host, task, int(host.core.t) + host.time_of_ns(seconds * NS + ns))
    return 0


def sys_clock_gettime(host: Host, task: Any, which: int, tp: int) -> int:
    """Time since the start of the run, whatever the clock: nothing here knows what day it is."""
    if signed(which, 32) not in CLOCKS:
        raise Errno("EINVAL")
    now = host.ns(int(host.core.t))
    host.copy_to_user(tp, STRUCTS["timespec"].new(tv_sec=now // NS, tv_nsec=now % NS).tobytes())
    return 0


def _find_task(host: Host, pid: int) -> tuple[int, Any]:
    """(row, task) of a thread number, 0 the caller.

    Raises:
        Errno: ESRCH.
    """
    if pid == 0:
        return host.task_row, host.task
    for row, task in host.tasks():
        if int(task.pid) == pid:
            return row, task
    raise Errno("ESRCH")


def sys_sched_setaffinity(host: Host, task: Any, pid: int, length: int, mask: int) -> int:
    """Say which cores a thread may run on; it moves at once if it is on another one."""
    size = min(length & 0xFFFFFFFF, CPUMASK_SIZE)
    wanted = int.from_bytes(host.copy_from_user(mask, size), "little") & host.online_cpus()
    _, other = _find_task(host, signed(pid, 32))
    if not wanted:
        raise Errno("EINVAL")
    other.allowed = wanted
    if not wanted >> int(other.cpu) & 1:  # migration_cpu_stop()
        other.cpu = (wanted & -wanted).bit_length() - 1
        other.migrations += 1
        if int(other.on_cpu) >= 0:
            host.kernel_call(calls.CALL_RESCHED, int(other.on_cpu))
        host.kernel_call(calls.CALL_RESCHED, int(other.cpu))
    host.charge("sched_setaffinity")
    return 0


def sys_sched_getaffinity(host: Host, task: Any, pid: int, length: int, mask: int) -> int:
    """The cores that a thread may run on; answers the bytes written."""
    length &= 0xFFFFFFFF
    if length % 8 or length * 8 < host.online_cpus().bit_length():
        raise Errno("EINVAL")
    _, other = _find_task(host, signed(pid, 32))
    size = min(length, CPUMASK_SIZE)
    host.copy_to_user(mask, (int(other.allowed) & MASK64).to_bytes(CPUMASK_SIZE, "little")[:size])
    return size
