"""A host boots: the VMM is its first program, and a run begins where the VMM enters its guest.

What the user asked of the guest reaches the VMM as files, each the structure that its ioctl takes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vpmu_emu.errors import HostError
from vpmu_emu.linux.kvm.cpuid import (
    PERF_CAP_PEBS_FORMAT,
    guest_leaves,
    supported_leaves,
    supported_perf_cap,
)
from vpmu_emu.linux.kvm.eventfilter import EventFilter
from vpmu_emu.linux.state import ENTERED_SYSCALL, SYSTEM
from vpmu_emu.linux.syscalls import Errno, Host, handle
from vpmu_emu.linux.syscalls.host import FRESH
from vpmu_emu.linux.syscalls.pagetables import PAGE
from vpmu_emu.linux.syscalls.tasks import spawn
from vpmu_emu.machine import msr_index
from vpmu_emu.machine.physical import PAGE_DIRTY
from vpmu_emu.machine.state import RAX, RSI, RUN_SYSCALL
from vpmu_emu.setup import saved
from vpmu_emu.setup.msrfilter import MsrFilter
from vpmu_emu.tables.cpus import CpuModel
from vpmu_emu.tables.linux import STRUCTS, constant
from vpmu_emu.tables.modes import Mode
from vpmu_emu.tables.msrs import Shape, by_name
from vpmu_emu.tables.ram import LOW_RAM_MIB

MIB = 1 << 20
HOST_MEMORY = 8 * MIB  # for programs and buffers, above the memory of guests
MSR_IA32_MISC_ENABLE_BTS_UNAVAIL = int(msr_index.MSR_IA32_MISC_ENABLE_BTS_UNAVAIL)
FIRST = 0  # the VMM's row of tasks, and its vCPU's of vcpus


def host_memory(ram_size: int) -> int:
    """Bytes above the guest's memory: the page tables that show it to its VMM grow with it."""
    return HOST_MEMORY + (ram_size >> 8) // MIB * MIB


def wishes(
    model: CpuModel,
    mode: Mode,
    told: Shape,
    events: tuple[int, int],
    fixed_cap: int,
    chosen: EventFilter | None,
    msr_filter: MsrFilter | None = None,
) -> dict[str, bytes]:
    """The files /cpuid, /msrs, /filter and those of an MSR filter for a guest that is not the usual one.

    Args:
        model: the host's CPU.
        mode: of the run.
        told, events: what the guest's CPUID shall say of its PMU (`guest_cpuid_shape`, `guest_events`).
        fixed_cap: KVM_MAX_NR_INTEL_FIXED_COUNTERS.
        chosen: its event filter.
        msr_filter: its MSR filter.
    """
    files = {} if msr_filter is None else msr_filter.files()
    supported = supported_leaves(model, mode, fixed_cap)
    changed = [leaf for leaf in guest_leaves(model, told, events) if leaf not in supported]
    if changed:
        entry = STRUCTS["kvm_cpuid_entry2"]
        files["/cpuid"] = STRUCTS["kvm_cpuid2"].new(nent=len(changed)).tobytes() + b"".join(
            entry.new(function=leaf, eax=a, ebx=b, ecx=c, edx=d).tobytes() for leaf, a, b, c, d in changed
        )
    msrs = []
    if told.version and told.perf_capabilities != supported_perf_cap(model, mode):
        msrs.append(("IA32_PERF_CAPABILITIES", told.perf_capabilities))
    if told.version and told.perf_capabilities & PERF_CAP_PEBS_FORMAT:
        msrs.append(("IA32_MISC_ENABLE", MSR_IA32_MISC_ENABLE_BTS_UNAVAIL))
    if msrs:
        entry = STRUCTS["kvm_msr_entry"]
        files["/msrs"] = STRUCTS["kvm_msrs"].new(nmsrs=len(msrs)).tobytes() + b"".join(
            entry.new(index=by_name(name), data=value).tobytes() for name, value in msrs
        )
    if chosen is not None:
        entries = chosen.includes + chosen.excludes
        head = STRUCTS["kvm_pmu_event_filter"].new(
            action=chosen.action,
            nevents=len(entries),
            fixed_counter_bitmap=chosen.fixed_counter_bitmap,
            flags=constant("KVM_PMU_EVENT_FLAG_MASKED_EVENTS"),
        )
        files["/filter"] = head.tobytes() + np.array(entries, dtype="<u8").tobytes()
    return files


OPENED = ("/guest", saved.PATH)  # what differs from guest to guest
# How far the boot is the same for every guest: the record and the pages in use where the VMM opens /guest.
# A run is a function of them, so that taking them from here changes nothing but the time it takes.
_BOOTED: dict[bytes, tuple[bytes, np.ndarray[Any, Any], np.ndarray[Any, Any]]] = {}
MOST_BOOTED = 16


def _opens_guest(host: Host) -> bool:
    regs = host.core.regs
    if int(regs[RAX]) != constant("SYS_openat") or int(host.task.entered) != ENTERED_SYSCALL:
        return False
    try:
        path = host.copy_from_user(int(regs[RSI]), 8)
    except Errno:
        return False
    return path.split(b"\0")[0].decode("latin-1") in OPENED


def _pages(host: Host) -> np.ndarray[Any, Any]:
    whole = len(host.M) // PAGE * PAGE
    return host.M[:whole].reshape(-1, PAGE)


def _snapshot(host: Host) -> tuple[bytes, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    # A guest's memory that nobody has written is not even looked at: there may be gigabytes of it.
    written = host.E.page_flags[: len(host.mem_map)] & np.uint8(PAGE_DIRTY) != 0
    written[int(host.S.mem_map) // PAGE :] = True
    used = np.flatnonzero((host.mem_map != FRESH) & written)
    used = used[_pages(host)[used].any(axis=1)]
    return host.S.tobytes(), used, _pages(host)[used].copy()


def _restore(host: Host, record: bytes, used: np.ndarray[Any, Any], data: np.ndarray[Any, Any]) -> None:
    saved = np.frombuffer(record, dtype=SYSTEM)[0]
    for name in SYSTEM.names or ():
        host.S[name] = saved[name]
    _pages(host)[used] = data
    flags = host.E.page_flags
    flags[used[used < len(flags)]] |= np.uint8(PAGE_DIRTY)


def boot_host(
    S: Any,
    M: np.ndarray[Any, Any],
    E: Any,
    model: CpuModel,
    run: Callable[[], int],
    vmm: Any,
    ram_size: int,
    files: dict[str, bytes],
    others: Sequence[Any] = (),
    live: str = "",
) -> Host:
    """Start program `vmm` and bring it to its first KVM_RUN; `run` is the compiled loop of the mode.

    With `live`, "save" or "restore", it is the VMM that can be migrated. `others` are host programs: they
    start then, on CPU 0, before the guest.

    Raises:
        HostError: the VMM gave up; what it wrote says why. Or there are more programs than room for tasks.
        LoadError: a program that is no program for Linux.
    """
    S.config.memory = len(M)
    S.free_page = ram_size
    for core in S.cores:
        core.kernel, core.activity = 1, 0
    host = Host(S, M, E, model, (vmm, *others), files)
    low = min(ram_size // MIB, LOW_RAM_MIB)
    above = ram_size // MIB - low
    filtered = ["msr_filter"] if "/msr_filter" in files else []
    high = [str(above)] if above or filtered else []
    argv = ["vmm", str(low), *high, *filtered]
    if live:
        argv = ["vmm", str(low), str(above), *(filtered or ["none"]), live]
    spawn(host, 0, argv, [])
    task = S.tasks[FIRST]
    trace, E.trace_on = int(E.trace_on), 0
    own = repr(sorted((path, data) for path, data in files.items() if path not in OPENED)).encode()
    image = b"".join(bytes(segment.data) for segment in vmm.segments)
    key = hashlib.blake2b(S.tobytes() + own + image + str((ram_size, len(M), argv)).encode()).digest()
    known = _BOOTED.get(key)
    if known is not None:
        _restore(host, *known)
        handle(host)
    with np.errstate(over="ignore"):
        while int(task.vcpu) < 0:
            E.t_slice = (1 << 62) - 1
            code = int(run())
            if known is None and code == RUN_SYSCALL and _opens_guest(host):
                known = _BOOTED[key] = _snapshot(host)
                if len(_BOOTED) > MOST_BOOTED:
                    del _BOOTED[next(iter(_BOOTED))]
            if code != RUN_SYSCALL:
                said = bytes(E.serial[: int(S.cores[0].serial_len)]).decode("utf-8", "replace")
                raise HostError(constant("EIO"), f"the VMM ended before its guest began: {said.strip()}")
            handle(host)
    for k, other in enumerate(others, 1):
        try:
            spawn(host, k, [other.name], [])
        except Errno as error:
            raise HostError(error.number, f"{other.name}: no room for this host program") from None
        S.percpu[0].need_resched = 1  # it goes first: the VMM has run so long already
    E.trace_on = trace
    return host
