"""A file is a row of the record: descriptors are per process, the lowest free number first.

The file system is fixed: a few texts of /sys and /proc, the devices, the guest's image; in /tmp programs
make files. fs/open.c, fs/read_write.c.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import numpy as np

from vpmu_emu.linux import state
from vpmu_emu.linux.calls import CALL_WAKE_UP
from vpmu_emu.linux.syscalls.host import MASK64, TMP, Errno, Host, signed
from vpmu_emu.linux.syscalls.pagetables import PAGE, TASK_SIZE
from vpmu_emu.linux.sysctl import set_cpu_time_max_percent, set_sample_rate
from vpmu_emu.tables.cpus import CpuModel
from vpmu_emu.tables.events import EVENTS, event_codes, metric_names
from vpmu_emu.tables.linux import constant

MAP_SHARED, MAP_TYPE, PROT_WRITE = (constant(n) for n in ("MAP_SHARED", "MAP_TYPE", "PROT_WRITE"))
PATH_MAX = 4096
MAX_RW_COUNT = 0x7FFF_F000
MAX_FILES = 1024  # RLIMIT_NOFILE
O_ACCMODE, O_RDONLY, O_WRONLY, O_CREAT, O_TRUNC = (
    constant(f"O_{name}") for name in ("ACCMODE", "RDONLY", "WRONLY", "CREAT", "TRUNC")
)
AT_FDCWD = constant("AT_FDCWD")
SEEK_SET, SEEK_CUR, SEEK_END = (constant(f"SEEK_{name}") for name in ("SET", "CUR", "END"))



@attrs.frozen(kw_only=True)
class Operations:
    """What one kind of file does (struct file_operations); what is missing is the errno of Linux.

    Attributes:
        ioctl: (host, file, cmd, arg) -> result.
        mmap: (host, file, address, length, prot, flags, offset) -> address.
        read: (host, file, buffer, count) -> bytes read.
        release: (host, obj): a file or a mapping of the object is gone, maybe the last.
        unmapped: (host, obj): a mapping of it is gone.
    """

    ioctl: Callable[[Host, Any, int, int], int] | None = None
    mmap: Callable[[Host, Any, int, int, int, int, int], int] | None = None
    read: Callable[[Host, Any, int, int], int] | None = None
    release: Callable[[Host, int], None] | None = None
    unmapped: Callable[[Host, int], None] | None = None


OPERATIONS: dict[int, Operations] = {}
"""By FILE_*: perf and KVM enter what their files do."""

DEVICES: dict[str, int] = {}
"""Path to FILE_* of devices that modules bring along."""

_KIND_OF_VMA = {state.VMA_PERF: state.FILE_PERF, state.VMA_KVM_RUN: state.FILE_VCPU}
_NOTHING = Operations()

LKDTM = "/sys/kernel/debug/provoke-crash/DIRECT"
LOCKUP = "HARDLOCKUP"
_PMU = "/sys/bus/event_source/devices/"


def max_precise(model: CpuModel) -> int:
    """x86_pmu_max_precise(): attr.precise_ip goes so far, 0 without PEBS."""
    return 3 if "ds" in model.features else 0


def _watchdog_thresh(host: Host) -> str:
    config = host.S.config
    return str(max(1, int(config.watchdog_period) // (16_000 * int(config.core_khz))))


def _events() -> dict[str, Callable[[Host], str]]:
    """sysfs shows an event of the core PMU as the terms that select it."""

    def terms(name: str) -> Callable[[Host], str]:
        def text(host: Host) -> str:
            code = event_codes(host.model.events).get(name)
            if code is None:
                raise Errno("ENOENT")
            return f"event={code & 255:#04x},umask={code >> 8:#04x}"

        return text

    names = (*(name for e in EVENTS for name in e.perf), *metric_names())
    return {f"{_PMU}cpu/events/{name}": terms(name) for name in names}


TEXTS: dict[str, Callable[[Host], str]] = {
    _PMU + "cpu/type": lambda _: str(state.PERF_TYPE_RAW),
    _PMU + "cpu/rdpmc": lambda _: "1",
    _PMU + "cpu/caps/max_precise": lambda host: str(max_precise(host.model)),
    _PMU + "cpu/caps/pmu_name": lambda host: {"spr": "sapphire_rapids", "icx": "icelake"}.get(
        host.model.name, "skylake"
    ),
    _PMU + "cpu/perf_event_mux_interval_ms": lambda host: str(1000 // int(host.S.config.hz)),
    _PMU + "cpu/format/event": lambda _: "config:0-7",
    _PMU + "cpu/format/umask": lambda _: "config:8-15",
    _PMU + "cpu/format/edge": lambda _: "config:18",
    _PMU + "cpu/format/inv": lambda _: "config:23",
    _PMU + "cpu/format/cmask": lambda _: "config:24-31",
    **_events(),
    _PMU + "software/type": lambda _: str(state.PERF_TYPE_SOFTWARE),
    _PMU + "uncore_imc_0/type": lambda _: str(state.PERF_TYPE_UNCORE),
    _PMU + "uncore_imc_0/cpumask": lambda _: "0",
    "/sys/devices/system/cpu/online": lambda host: (
        f"0-{n - 1}" if (n := host.online_cpus().bit_count()) > 1 else "0"
    ),
    "/sys/module/kvm/parameters/enable_pmu": lambda host: "NY"[int(host.S.config.enable_pmu != 0)],
    "/sys/module/kvm/parameters/ignore_msrs": lambda host: "NY"[int(host.S.cores[0].ignore_msrs != 0)],
    "/sys/module/kvm/parameters/force_emulation_prefix": (
        lambda host: str(int(host.S.config.force_emulation_prefix))
    ),
    "/sys/module/kvm/parameters/enable_vmware_backdoor": lambda _: "N",
    "/sys/module/kvm_intel/parameters/ept": lambda _: "Y",
    "/sys/module/kvm_intel/parameters/nested": lambda _: "N",
    "/sys/module/kvm_intel/parameters/unrestricted_guest": lambda _: "N",
    "/sys/module/kvm_intel/parameters/enable_apicv": lambda host: "NY"[int(host.S.config.apicv != 0)],
    "/proc/sys/kernel/perf_event_max_sample_rate": lambda host: str(int(host.S.config.max_sample_rate)),
    "/proc/sys/kernel/perf_cpu_time_max_percent": (
        lambda host: str(int(host.S.config.cpu_time_max_percent))
    ),
    "/proc/sys/kernel/perf_event_paranoid": lambda _: "2",
    "/proc/sys/kernel/perf_event_mlock_kb": lambda _: "516",
    "/proc/sys/kernel/watchdog": lambda host: str(int(int(host.S.config.watchdog) != 0)),
    "/proc/sys/kernel/nmi_watchdog": lambda host: str(int(int(host.S.config.watchdog) == 1)),
    "/proc/sys/kernel/watchdog_thresh": _watchdog_thresh,
}
"""What a read of each file gives, without the line's end."""
_PATHS = tuple(TEXTS)


def _set_max_sample_rate(host: Host, value: int) -> None:
    config = host.S.config
    if int(config.cpu_time_max_percent) in (0, 100):  # without a limit there is nothing to set
        raise Errno("EINVAL")
    set_sample_rate(config, value)


SYSCTLS: dict[str, tuple[int, int, Callable[[Host, int], None]]] = {
    "/proc/sys/kernel/perf_event_max_sample_rate": (1, (1 << 31) - 1, _set_max_sample_rate),
    "/proc/sys/kernel/perf_cpu_time_max_percent": (
        0,
        100,
        lambda host, value: set_cpu_time_max_percent(host.S.config, value),
    ),
}
"""Texts that may be written: the least and greatest number, and what the kernel does with it."""


# --- descriptors ----------------------------------------------------------------------------------------
def files(host: Host, space: int) -> Iterator[Any]:
    """The open files of an address space's process."""
    return (f for f in host.S.files if f.kind and int(f.mm) == space)


def fget(host: Host, fd: int) -> Any:
    """The current process's open file of this number.

    Raises:
        Errno: EBADF.
    """
    for file in files(host, int(host.task.mm)):
        if int(file.fd) == fd:
            return file
    raise Errno("EBADF")


def room(host: Host) -> None:
    """Raises Errno EMFILE or ENFILE if no other file can be opened."""
    if sum(1 for _ in files(host, int(host.task.mm))) >= MAX_FILES:
        raise Errno("EMFILE")
    if all(file.kind for file in host.S.files):
        raise Errno("ENFILE")


def open_row(host: Host, space: int, kind: int, obj: int, mode: int, fd: int = -1) -> int:
    """Open something for a process: its number, the lowest that is free unless one is given.

    Raises:
        Errno: ENFILE, the table is full.
    """
    taken = {int(file.fd) for file in files(host, space)}
    for k in range(state.N_FILES):
        file = host.S.files[k]
        if file.kind == state.FILE_NONE:
            number = next(n for n in range(len(taken) + 1) if n not in taken) if fd < 0 else fd
            file.kind, file.mm, file.fd = kind, space, number
            file.obj, file.pos, file.mode = obj, 0, mode
            return number
    raise Errno("ENFILE")


def opened(host: Host, kind: int, obj: int) -> bool:
    """Whether any process has this object open or mapped, or runs it: KVM_RUN holds its file (fdget)."""
    if kind == state.FILE_VCPU and int(host.S.vcpus[obj].task) >= 0:
        return True
    if any(int(f.kind) == kind and int(f.obj) == obj for f in host.S.files):
        return True
    return any(
        _KIND_OF_VMA.get(int(vma.kind)) == kind and int(vma.obj) == obj
        for mm in host.S.mms
        if mm.users
        for vma in mm.vmas
        if vma.length
    )


def put(host: Host, kind: int, obj: int) -> None:
    """Somebody lets go of an object; with the last one it goes.

    Raises:
        Restart: what it has is on a core that is in a guest.
    """
    release = OPERATIONS.get(kind, _NOTHING).release
    if release is not None:
        release(host, obj)


def unmapped(host: Host, vma_kind: int, obj: int) -> None:
    """A mapping of an object is gone."""
    kind = _KIND_OF_VMA[vma_kind]
    function = OPERATIONS[kind].unmapped
    if function is not None:
        function(host, obj)
    put(host, kind, obj)


def close_row(host: Host, file: Any) -> None:
    """Close one file.

    Raises:
        Restart: its event is on a core that is in a guest; the file is still open.
    """
    kind, obj = int(file.kind), int(file.obj)
    file.kind = state.FILE_NONE
    try:
        put(host, kind, obj)
    except BaseException:
        file.kind = kind
        raise


def leave_run(host: Host, task: Any) -> None:
    """A task is no longer in KVM_RUN: who waits for the vCPU's mutex wakes up.

    If all files were closed meanwhile, the VM goes now (fput).

    Raises:
        Restart: an event of a vCPU is on a core that is in a guest; call again.
    """
    k = int(task.vcpu)
    host.S.vcpus[k].task = -1
    for row, other in host.tasks():
        if int(other.mutex) == k + 1:
            host.kernel_call(CALL_WAKE_UP, row)
    put(host, state.FILE_VCPU, k)
    task.vcpu = -1


def close_all(host: Host, space: int) -> None:
    """Close all files of a process, the newest first: vCPUs before their VM."""
    for file in sorted(files(host, space), key=lambda f: -int(f.fd)):
        close_row(host, file)


def sys_close(host: Host, task: Any, fd: int) -> int:
    """Close a file."""
    close_row(host, fget(host, signed(fd, 32)))
    host.charge("filp_close")
    return 0


# --- opening --------------------------------------------------------------------------------------------
def _path(host: Host, address: int) -> str:
    """getname(): a path as the program wrote it."""
    found = b""
    while b"\0" not in found:
        if len(found) >= PATH_MAX:
            raise Errno("ENAMETOOLONG")
        part = min(PAGE - (address + len(found)) % PAGE, PATH_MAX - len(found))
        found += host.copy_from_user(address + len(found), part)
    return found.split(b"\0")[0].decode("utf-8", "surrogateescape")


def _openat(host: Host, dfd: int, filename: int, flags: int) -> int:
    path = _path(host, filename)
    if not path:
        raise Errno("ENOENT")
    if not path.startswith("/") and dfd != AT_FDCWD:
        fget(host, dfd)
        raise Errno("ENOTDIR")  # no directory can be opened
    room(host)
    whole = "/" + "/".join(part for part in path.split("/") if part not in ("", "."))
    kind, obj = state.FILE_NONE, 0
    if whole in TEXTS:
        kind, obj = state.FILE_TEXT, _PATHS.index(whole)
        if flags & O_ACCMODE != O_RDONLY and whole not in SYSCTLS:
            raise Errno("EACCES")
    elif whole in host.images or (whole.startswith(TMP) and flags & O_CREAT):
        if flags & O_ACCMODE != O_RDONLY and not whole.startswith(TMP):
            raise Errno("EROFS")
        if whole not in host.images or (flags & O_TRUNC and flags & O_ACCMODE != O_RDONLY):
            host.images[whole] = bytearray()
        kind, obj = state.FILE_GUEST, list(host.images).index(whole)
    elif whole in DEVICES:
        kind = DEVICES[whole]
    elif whole == LKDTM:
        kind = state.FILE_LKDTM
    else:
        raise Errno("EROFS" if flags & O_CREAT else "ENOENT")
    if path.endswith("/"):
        raise Errno("ENOTDIR")
    fd = open_row(host, int(host.task.mm), kind, obj, flags & O_ACCMODE)
    host.charge("do_sys_openat2")
    return fd


def sys_openat(host: Host, task: Any, dfd: int, filename: int, flags: int, mode: int) -> int:
    """Open a file by its path."""
    return _openat(host, signed(dfd, 32), filename, flags & 0xFFFFFFFF)


def sys_open(host: Host, task: Any, filename: int, flags: int, mode: int) -> int:
    """As openat with an absolute path, or one from the root directory."""
    return _openat(host, AT_FDCWD, filename, flags & 0xFFFFFFFF)


# --- reading and writing --------------------------------------------------------------------------------
def _content(host: Host, file: Any) -> bytes | bytearray:
    kind = int(file.kind)
    if kind == state.FILE_TEXT:
        return (TEXTS[_PATHS[int(file.obj)]](host) + "\n").encode()
    if kind == state.FILE_LKDTM:
        return f"Available crash types:\n{LOCKUP}\n".encode()
    return list(host.images.values())[int(file.obj)] if kind == state.FILE_GUEST else b""


def _read_at(host: Host, file: Any, buffer: int, count: int, position: int) -> int:
    part = bytes(_content(host, file)[position : position + count])
    host.copy_to_user(buffer, part)
    host.charge("vfs_read")
    return len(part)


def _readable(host: Host, fd: int) -> Any:
    file = fget(host, signed(fd, 32))
    if int(file.mode) & O_ACCMODE == O_WRONLY:
        raise Errno("EBADF")
    return file


def sys_read(host: Host, task: Any, fd: int, buffer: int, count: int) -> int:
    """Read from where the last read ended, or an event's counts."""
    file = _readable(host, fd)
    if buffer + count > TASK_SIZE:
        raise Errno("EFAULT")
    count = min(count, MAX_RW_COUNT)
    operations = OPERATIONS.get(int(file.kind))
    if operations is not None:
        if operations.read is None:
            raise Errno("EINVAL")
        return operations.read(host, file, buffer, count)
    done = _read_at(host, file, buffer, count, int(file.pos))
    file.pos += done
    return done


def sys_pread64(host: Host, task: Any, fd: int, buffer: int, count: int, position: int) -> int:
    """Read from a given position."""
    if signed(position) < 0:
        raise Errno("EINVAL")
    file = _readable(host, fd)
    if int(file.kind) not in (state.FILE_TEXT, state.FILE_GUEST, state.FILE_LKDTM):
        raise Errno("ESPIPE")
    if buffer + count > TASK_SIZE:
        raise Errno("EFAULT")
    return _read_at(host, file, buffer, min(count, MAX_RW_COUNT), position)


def sys_write(host: Host, task: Any, fd: int, buffer: int, count: int) -> int:
    """Write to the console, set a number of the kernel, or provoke a crash."""
    file = fget(host, signed(fd, 32))
    if int(file.mode) & O_ACCMODE == O_RDONLY:
        raise Errno("EBADF")
    if buffer + count > TASK_SIZE:
        raise Errno("EFAULT")
    kind = int(file.kind)
    if kind == state.FILE_STDOUT:
        data = host.copy_from_user(buffer, min(count, len(host.E.serial)))
        count = min(count, MAX_RW_COUNT)
        _console(host, data[:count], count)
        host.charge("vfs_write")
        return count
    if kind == state.FILE_LKDTM:
        return _direct_entry(host, buffer, count)
    if kind == state.FILE_GUEST:
        return _write_tmp(host, file, buffer, min(count, MAX_RW_COUNT))
    if kind == state.FILE_TEXT:
        return _write_sysctl(host, file, buffer, count)
    raise Errno("EINVAL")


def _console(host: Host, data: bytes, count: int) -> None:
    """Text joins what is written to the serial port; what does not fit is counted only, as there."""
    core, serial = host.S.cores[0], host.E.serial
    start = int(core.serial_len)
    part = data[: max(0, len(serial) - start)]
    serial[start : start + len(part)] = np.frombuffer(part, dtype=np.uint8)
    for other in host.S.cores:
        other.serial_len = start + count


def _write_tmp(host: Host, file: Any, buffer: int, count: int) -> int:
    """A file of /tmp; all of them together have as much room as there is memory."""
    data, position = host.copy_from_user(buffer, count), int(file.pos)
    content = host.images[list(host.images)[int(file.obj)]]
    assert isinstance(content, bytearray)  # nothing else is opened for writing
    others = sum(len(each) for path, each in host.images.items() if path.startswith(TMP)) - len(content)
    if others + max(position + count, len(content)) > len(host.M):
        raise Errno("ENOSPC")
    content[len(content) : position] = bytes(max(position - len(content), 0))
    content[position : position + count] = data
    file.pos = position + count
    host.charge("vfs_write")
    return count


def _write_sysctl(host: Host, file: Any, buffer: int, count: int) -> int:
    """proc_dointvec_minmax(): a decimal number at the beginning of the file; later writes are ignored."""
    if not count or int(file.pos):
        return count
    least, most, store = SYSCTLS[_PATHS[int(file.obj)]]
    text = host.copy_from_user(buffer, min(count, PAGE)).split(b"\0")[0].strip()
    if not re.fullmatch(rb"-?\d{1,20}", text) or not least <= int(text) <= most:
        raise Errno("EINVAL")
    store(host, int(text))
    file.pos += count
    host.charge("vfs_write")
    return count


def _direct_entry(host: Host, buffer: int, count: int) -> int:
    """direct_entry() of drivers/misc/lkdtm: the kernel hurts itself in the way that was asked for."""
    if not 0 < count < PAGE:
        raise Errno("EINVAL")
    word = host.copy_from_user(buffer, count).split(b"\0")[0].strip()
    if word != LOCKUP.encode():
        raise Errno("EINVAL")
    host.S.percpu[host.cpu].lockup = 1  # lkdtm_HARDLOCKUP(): interrupts off, for (;;)
    return count


def sys_lseek(host: Host, task: Any, fd: int, offset: int, whence: int) -> int:
    """Move to where the next read begins."""
    file = fget(host, signed(fd, 32))
    whence = signed(whence, 32)
    if int(file.kind) not in (state.FILE_TEXT, state.FILE_GUEST, state.FILE_LKDTM):
        raise Errno("ESPIPE")
    if whence not in (SEEK_SET, SEEK_CUR, SEEK_END):
        raise Errno("EINVAL")
    size = len(_content(host, file))
    position = {SEEK_SET: 0, SEEK_CUR: int(file.pos), SEEK_END: size}[whence] + signed(offset)
    if not 0 <= position <= MASK64 >> 1:
        raise Errno("EINVAL")
    file.pos = position
    return position


# --- the rest -------------------------------------------------------------------------------------------
def sys_ioctl(host: Host, task: Any, fd: int, cmd: int, arg: int) -> int:
    """What only one kind of file knows."""
    file = fget(host, signed(fd, 32))
    function = OPERATIONS.get(int(file.kind), _NOTHING).ioctl
    if function is None:
        raise Errno("ENOTTY")
    return function(host, file, cmd & 0xFFFFFFFF, arg)


def mmap_file(
    host: Host, fd: int, address: int, length: int, prot: int, flags: int, offset: int
) -> int:
    """Map a file: the address.

    Raises:
        Errno: EBADF; EACCES, the file was opened for less; ENODEV, it cannot be mapped; what it says.
    """
    file = fget(host, fd)
    mode = int(file.mode) & O_ACCMODE
    if mode == O_WRONLY or (flags & MAP_TYPE == MAP_SHARED and prot & PROT_WRITE and mode == O_RDONLY):
        raise Errno("EACCES")
    if not 1 <= flags & MAP_TYPE <= 3:
        raise Errno("EINVAL")
    function = OPERATIONS.get(int(file.kind), _NOTHING).mmap
    if function is None:
        raise Errno("ENODEV")
    return function(host, file, address, length, prot, flags, offset)
