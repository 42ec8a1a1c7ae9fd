"""A run that can be stood at any instruction of its guest, and looked at without a change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import numpy as np

from vpmu_emu.asm import Program
from vpmu_emu.errors import ConfigError, VpmuError
from vpmu_emu.machine.msr_index import ARCH_PERFMON_EVENTSEL_ENABLE
from vpmu_emu.machine.processor_flags import X86_EFLAGS_RF
from vpmu_emu.machine.state import N_RING, RUN_LIMIT
from vpmu_emu.options import Options
from vpmu_emu.system import PAGE, PAGE_DIRTY, Stop, System

GP, FIXED = "pmc", "fixed"
CONTROLS = ("IA32_PERF_GLOBAL_CTRL", "IA32_FIXED_CTR_CTRL", "IA32_PERF_GLOBAL_STATUS")
_ENABLE = int(ARCH_PERFMON_EVENTSEL_ENABLE)
_NO_LIMIT = (1 << 64) - 1


@attrs.frozen
class Look:
    """What a guest could know between two of its instructions.

    Attributes:
        at: instructions after which the run was to stand.
        done: those that are done: KVM may do several before it lets the guest go on.
        registers: rax … r15, rip, rflags without RF.
        controls: selectors and control registers of the PMU by name.
        counters: all counters; running: those that count at the moment, of which the guest knows nothing
            until it reads them.
        stop: why the run is over, None while it goes on.
        serial: characters that were printed.
    """

    at: int
    done: int
    registers: dict[str, int]
    controls: dict[str, int]
    counters: dict[str, int]
    running: frozenset[str]
    stop: Stop | None
    serial: int

    @property
    def rip(self) -> int:
        """Address of the next instruction."""
        return self.registers["rip"]

    @property
    def status(self) -> int:
        """GLOBAL_STATUS, 0 without a PMU."""
        return self.controls.get("IA32_PERF_GLOBAL_STATUS", 0)


def bit_of(counter: str) -> int:
    """A counter's bit in GLOBAL_CTRL and GLOBAL_STATUS."""
    is_fixed = counter.startswith(FIXED)
    return int(counter.removeprefix(FIXED if is_fixed else GP)) + 32 * is_fixed


def counts(controls: dict[str, int], name: str) -> bool:
    """Whether the control registers have counter `name` on."""
    bit = bit_of(name)
    on = controls["IA32_PERF_GLOBAL_CTRL"] >> bit & 1
    if name.startswith(FIXED):
        return bool(on and controls["IA32_FIXED_CTR_CTRL"] >> 4 * (bit - 32) & 3)
    return bool(on and controls[f"IA32_PERFEVTSEL{bit}"] & _ENABLE)


class Lane:
    """One of the runs that are compared.

    Raises:
        VpmuError: whatever is wrong with program or options.
    """

    def __init__(
        self, name: str, program: Program, options: Options, ready: Callable[[], None] | None = None
    ) -> None:
        options = attrs.evolve(options, trace=True).heeded()
        if options.cores != 1:
            raise ConfigError("cores", "runs are compared instruction by instruction of one processor", "1")
        self.name = name
        self.options = options
        self.system = System(program, options, ready=ready)
        self.most = _NO_LIMIT if options.max_insns is None else options.max_insns
        self._stop: Stop | None = None
        cores = np.asarray(self.system.S["cores"])
        self._vcpus = np.asarray(self.system.S["vcpus"])["used"]
        self._nonroot = cores["vmx"]["nonroot"][:1]
        self._nmi = cores["nmi_pending"][:1]
        self._glance = [cores["regs"][0, :16], cores["rip"][:1], cores["rflags"][:1]]

    # --- going on -----------------------------------------------------------------------------------
    def to(self, at: int) -> None:
        """Go on until `at` instructions are done, or the run is over."""
        if self._stop is not None:
            return
        self._stop = self.system.go_to(min(at, self.most))
        if self.options.host and int(np.count_nonzero(self._vcpus)) > 1:
            raise VpmuError("a program of the host has a guest of its own: two guests cannot be aligned")
        if self._stop is None and self.most <= at:
            self._stop = self.system.stop(RUN_LIMIT)

    def settle(self) -> None:
        """Have the host take an NMI that waits: its handler may change what the guest reads next.

        Silicon sets GLOBAL_STATUS with the overflow; where perf owns the PMU its NMI does, between the same
        two instructions of the guest.
        """
        if self._stop is None and self._nmi[0] and self._nonroot[0]:
            done = self.system.instructions
            self.system.E.insn_limit = _NO_LIMIT
            stop = self.system.step()
            if stop.reason != "step":
                self._stop = stop
            assert self.system.instructions == done or self._stop is not None

    @property
    def stop(self) -> Stop | None:
        """Why the run is over; None while it goes on."""
        return self._stop

    def save(self) -> tuple[bytes, Stop | None]:
        """Everything that the rest depends on."""
        return self.system.snapshot(), self._stop

    def restore(self, saved: tuple[bytes, Stop | None]) -> None:
        """Go back to what `save` gave."""
        self.system.restore(saved[0])
        self._stop = saved[1]

    # --- looking ------------------------------------------------------------------------------------
    def glance(self) -> bytes:
        """Registers, RIP and RFLAGS: all that an instruction can change of which the trace says nothing.

        b"" where they are not on the core.
        """
        if self._stop is not None or (self.system.has_host and not self._nonroot[0]):
            return b""
        return b"".join(part.tobytes() for part in self._glance)

    def look(self, at: int) -> Look:
        """The guest as it is now."""
        view = self.system.guest_pmu()
        controls: dict[str, int] = {}
        counters: dict[str, int] = {}
        if view["pmc"] or view["fixed"]:
            values = (view["global_ctrl"], view["fixed_ctr_ctrl"], view["global_status"])
            controls = dict(zip(CONTROLS, values, strict=True))
            controls |= {f"IA32_PERFEVTSEL{i}": v for i, v in enumerate(view["eventsel"])}
            counters = {f"{GP}{i}": v for i, v in enumerate(view["pmc"])}
            counters |= {f"{FIXED}{i}": v for i, v in enumerate(view["fixed"])}
        running = frozenset(name for name in counters if counts(controls, name))
        serial = int(self.system.core.serial_len)
        done, registers = self.system.instructions, self.system.registers()
        registers["rflags"] &= ~int(X86_EFLAGS_RF)  # PUSHF does not show it, and a frame is memory
        return Look(at, done, registers, controls, counters, running, self._stop, serial)

    @property
    def head(self) -> int:
        """Events of the trace so far."""
        return int(self.system.E.ring_head)

    def events(self, since: int = 0) -> list[Any]:
        """The events of the trace from number `since` on, as far as the ring has kept them."""
        fresh = self.head - since
        return list(self.system.events()[-fresh:]) if fresh > 0 else []

    def lost(self, since: int) -> bool:
        """Whether the ring has dropped some of them."""
        return self.head - since > N_RING

    def written(self) -> np.ndarray[Any, Any]:
        """Numbers of the pages of the guest's memory that a store has touched."""
        flags = self.system.E.page_flags[: self.system.ram_size // PAGE]
        return np.flatnonzero(flags & PAGE_DIRTY)

    def page(self, number: int) -> bytes:
        """One page of the guest's memory."""
        return bytes(self.system.M[number * PAGE : (number + 1) * PAGE])


def memory_differs(a: Lane, b: Lane) -> int | None:
    """The lowest address at which the guests' memory differs, None if it does not."""
    for number in np.union1d(a.written(), b.written()):
        here, there = a.page(int(number)), b.page(int(number))
        if here != there:
            offset = next(k for k in range(PAGE) if here[k] != there[k])
            return int(number) * PAGE + offset
    return None
