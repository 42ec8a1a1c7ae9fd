"""System calls are plain Python over the record: no state of theirs is in a Python object.

A `Host` is what they are given: the record, memory, and the inputs of the run. Work that belongs to the
compiled kernel goes through `linux/calls.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from vpmu_emu.linux.calls import CALL_CHARGE, CALL_FLUSH, CALL_KICK, kernel_call
from vpmu_emu.linux.state import N_CORES, TASK_DEAD
from vpmu_emu.linux.syscalls.pagetables import PAGE, pieces
from vpmu_emu.machine.clock import tsc_value
from vpmu_emu.machine.physical import PAGE_CODE, PAGE_DIRTY
from vpmu_emu.tables.cpus import COST_NAMES, CpuModel
from vpmu_emu.tables.linux import ERRNO, errno_name

MASK64 = (1 << 64) - 1
NS_PER_MS = 1_000_000

TMP = "/tmp/"  # noqa: S108  (the host's, where its programs may make files)

FRESH, IN_USE, STALE = range(3)  # of a page in the map of physical memory


class Errno(Exception):
    """A system call fails with this error number of Linux."""

    def __init__(self, name: str) -> None:
        self.number = ERRNO[name]
        super().__init__(name)


class Restart(Exception):
    """The system call has to be tried again once core `cpu` has come out of its guest."""

    def __init__(self, cpu: int) -> None:
        self.cpu = cpu
        super().__init__(cpu)


class Host:
    """What system calls work with.

    Attributes:
        S, M, E: record, physical memory and scratch, as everywhere.
        model: the CPU.
        programs: what the tasks run; `task.program` is an index of it.
        images: files by path: those that the user brought ("/guest" is the guest's ELF image), and those
            that programs make in /tmp.
    """

    def __init__(
        self,
        S: Any,
        M: np.ndarray[Any, Any],
        E: Any,
        model: CpuModel,
        programs: Sequence[Any] = (),
        images: Mapping[str, bytes | bytearray] | None = None,
    ) -> None:
        self.S, self.M, self.E = S, M, E
        self.model = model
        self.programs = tuple(programs)
        self.images = {
            path: bytearray(data) if path.startswith(TMP) else data for path, data in (images or {}).items()
        }
        self.words = M[: len(M) & ~7].view("<u8")
        if not S.mem_map:
            self._boot_memory()

    # --- who runs ---------------------------------------------------------------------------------------
    @property
    def cpu(self) -> int:
        """The core that the system call runs on."""
        return int(self.S.this_cpu)

    @property
    def core(self) -> Any:
        """Its silicon."""
        return self.S.cores[self.cpu]

    @property
    def task_row(self) -> int:
        """Row of the task that made the system call."""
        return int(self.S.percpu[self.cpu].curr)

    @property
    def task(self) -> Any:
        """The task that made the system call."""
        return self.S.tasks[self.task_row]

    @property
    def mm(self) -> Any:
        """Its address space."""
        return self.S.mms[int(self.task.mm)]

    def online_cpus(self) -> int:
        """Bit per core that the host uses."""
        return sum(1 << k for k in range(N_CORES) if self.S.percpu[k].online)

    def tasks(self) -> Iterator[tuple[int, Any]]:
        """(row, task) of all that are alive."""
        for row, task in enumerate(self.S.tasks):
            if task.used and int(task.state) != TASK_DEAD:
                yield row, task

    # --- time -------------------------------------------------------------------------------------------
    def ns(self, time: int) -> int:
        """Nanoseconds of a time in 1/16 cycle, as sched_clock() makes them of the TSC."""
        return tsc_value(self.core, time) * int(self.S.config.cyc2ns_mul) >> 31

    def time_of_ns(self, ns: int) -> int:
        """1/16 cycles of so many nanoseconds, rounded up."""
        return -(-ns * 16 * int(self.S.config.core_khz) // NS_PER_MS)

    # --- the compiled kernel ----------------------------------------------------------------------------
    def kernel_call(self, op: int, a: int = 0, b: int = 0) -> int:
        """One operation of `linux/calls.py` on this core; negative: an errno."""
        with np.errstate(over="ignore"):
            return int(kernel_call(self.S, self.M, self.E, op, a, b))

    def charge(self, name: str) -> None:
        """Retire the work of a row of the costs on this core."""
        self.kernel_call(CALL_CHARGE, COST_NAMES.index(name))

    @contextmanager
    def on_cpu(self, cpu: int) -> Iterator[None]:
        """Work on another core, as the function of an IPI does (smp_call_function_single).

        Raises:
            Restart: that core is in a guest; it has been kicked.
        """
        here = self.cpu
        if cpu == here or cpu < 0:
            yield
            return
        if not self.stop_cpu(cpu):
            raise Restart(cpu)
        if int(self.S.percpu[cpu].curr) < 0:  # the interrupt wakes it
            self.S.cores[cpu].t = max(int(self.S.cores[cpu].t), int(self.core.t))
        self.S.this_cpu = cpu
        try:
            yield
        finally:
            self.S.this_cpu = here
            self.S.percpu[cpu].call = 0

    def stop_cpu(self, cpu: int) -> bool:
        """Whether core `cpu` is out of its guest; if it is not, an IPI is on its way."""
        percpu = self.S.percpu[cpu]
        if cpu == self.cpu or int(percpu.call) == 2 or not self.S.cores[cpu].vmx.nonroot:
            return True
        if not percpu.call:
            percpu.call = 1
            self.kernel_call(CALL_KICK, cpu)
        return False

    def cpus_with(self, vm: int) -> list[int]:
        """The cores on which a vCPU of the VM is loaded."""
        S = self.S
        return [
            cpu
            for cpu, percpu in enumerate(S.percpu)
            if int(percpu.vcpu) >= 0 and int(S.vcpus[int(percpu.vcpu)].vm) == vm
        ]

    def leave_guests(self, vm: int) -> None:
        """Have every core come out of the VM's guests (kvm_make_all_cpus_request).

        Raises:
            Restart: one is still in it.
        """
        for cpu in self.cpus_with(vm):
            with self.on_cpu(cpu):
                pass

    def invalidate_range_start(self, mm: Any, start: int, end: int) -> None:
        """start..end of an address space is about to change: no guest that is shown any of it runs on.

        kvm_mmu_notifier_invalidate_range_start(). What its core remembers is forgotten with the change.

        Raises:
            Restart: one is still in it; nothing has changed.
        """
        for k, vm in enumerate(self.S.vms):
            if vm.used and int(self.S.mms[int(vm.mm)].cr3) == int(mm.cr3):
                slots = zip(vm.slot_hva, vm.slot_size, strict=True)
                if any(n and int(at) < end and start < int(at) + int(n) for at, n in slots):
                    self.leave_guests(k)

    def flush(self, cpu: int) -> None:
        """Forget a core's translations and everybody's decoded code."""
        self.kernel_call(CALL_FLUSH, cpu)

    # --- physical memory: a byte per page at `S.mem_map` ---------------------------------------
    def _boot_memory(self) -> None:
        S = self.S
        pages = len(self.M) // PAGE
        start = -(-int(S.free_page) // PAGE)
        room = -(-pages // PAGE)
        S.mem_map = start * PAGE
        S.free_page = (start + room) * PAGE
        self.mem_map[:] = FRESH
        self.mem_map[start : start + room] = IN_USE

    @property
    def mem_map(self) -> np.ndarray[Any, Any]:
        """For each page of physical memory: free and all zero, in use, or free and written before."""
        at = int(self.S.mem_map)
        return self.M[at : at + len(self.M) // PAGE]

    def alloc_pages(self, n: int, *, pool: bool = False) -> int:
        """Index in `M` of n contiguous zeroed pages; `pool`: of those for MAP_HUGETLB, at the bottom.

        Raises:
            Errno: ENOMEM.
        """
        S = self.S
        used = self.mem_map
        low, high = (0, int(S.mem_map) // PAGE) if pool else (int(S.free_page) // PAGE, len(used))
        if not 0 < n <= high - low:
            raise Errno("ENOMEM")
        # Where the sum over n pages is 0 they are free.
        taken = np.concatenate(([0], np.cumsum(used[low:high] == IN_USE, dtype=np.int64)))
        runs = np.flatnonzero(taken[n:] == taken[:-n])
        if not len(runs):
            raise Errno("ENOMEM")
        page = low + int(runs[0])
        if (used[page : page + n] == STALE).any():  # fresh ones are never touched: a guest has many
            self.clear(page * PAGE, n * PAGE)
        used[page : page + n] = IN_USE
        return page * PAGE

    def free_pages(self, at: int, n: int) -> None:
        """Give n pages back, which nobody maps any more."""
        self.mem_map[at // PAGE : at // PAGE + n] = STALE

    def clear(self, at: int, size: int) -> None:
        """Zero physical memory."""
        self.M[at : at + size] = 0
        self._written(at, size)

    def write_physical(self, at: int, data: bytes) -> None:
        """Store bytes at an index of `M`."""
        self.M[at : at + len(data)] = np.frombuffer(data, dtype=np.uint8)
        self._written(at, len(data))

    def _written(self, at: int, size: int) -> None:
        flags = self.E.page_flags[at // PAGE : -(-(at + size) // PAGE)]
        if len(flags):
            if np.bitwise_and(flags, int(PAGE_CODE)).any():
                self.flush(self.cpu)
            np.bitwise_or(flags, np.uint8(PAGE_DIRTY), out=flags)

    # --- user memory ------------------------------------------------------------------------------------
    def _pieces(self, address: int, n: int, write: bool) -> Iterator[tuple[int, int]]:
        found = pieces(self.words, int(self.mm.cr3), address, n, write)
        if found is None:
            raise Errno("EFAULT")
        return found

    def copy_from_user(self, address: int, n: int) -> bytes:
        """n bytes of the current address space.

        Raises:
            Errno: EFAULT, a part of them is not there for a program.
        """
        return b"".join(
            self.M[at : at + size].tobytes() for at, size in self._pieces(address, n, False)
        )

    def copy_to_user(self, address: int, data: bytes) -> None:
        """Store bytes into the current address space: all of them or none.

        Raises:
            Errno: EFAULT, a program could not write all of them.
        """
        done = 0
        for at, size in self._pieces(address, len(data), True):
            self.write_physical(at, data[done : done + size])
            done += size

    def get_user(self, address: int, size: int) -> int:
        """An unsigned number of `size` bytes.

        Raises:
            Errno: EFAULT.
        """
        return int.from_bytes(self.copy_from_user(address, size), "little")

    def put_user(self, address: int, value: int, size: int) -> None:
        """Store a number of `size` bytes.

        Raises:
            Errno: EFAULT.
        """
        data = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        self.copy_to_user(address, data)


def signed(value: int, bits: int = 64) -> int:
    """The low `bits` of a register as a C int or long."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def failed(result: int) -> None:
    """Raise the errno of a kernel function that answered a negative number."""
    if result < 0:
        raise Errno(errno_name(-result))
