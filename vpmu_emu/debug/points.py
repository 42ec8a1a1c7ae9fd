"""What a debugger waits for, and what it tells when it holds: plain data that does nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from vpmu_emu.errors import ConfigError
from vpmu_emu.machine import msr_index
from vpmu_emu.numerals import shown
from vpmu_emu.tables.msrs import msr_name

READS, WRITES = 1, 2
AFTER, BEFORE = "after", "before"
# Vectors whose exception has an error code (SDM 3A 6.13).
WITH_ERROR = (8, 10, 11, 12, 13, 14, 17, 21)
ENDED = (
    "debug-exit", "halted", "triple-fault", "shutdown", "reset", "hard-lockup", "max-insns", "max-cycles",
    "end-of-time", "saved",
)  # fmt: skip


@attrs.frozen
class Access:
    """One RDMSR, WRMSR or RDPMC of the guest; `old` is what RDMSR would have given right before a write.

    It is None where it would have given nothing that KVM or the processor knows of: a #GP, or an answer of
    the VMM's own. `exited` says whether the guest was left for it.
    """

    kind: str
    index: int
    value: int
    old: int | None
    rip: int
    place: str
    fault: bool = False
    exited: bool = False
    pending: bool = False  # it is about to be made

    @property
    def msr(self) -> int:
        """The MSR that it is of: of RDPMC, that of its counter."""
        if self.kind != "rdpmc":
            return self.index
        if self.index >> 29 & 1:
            return int(msr_index.MSR_PERF_METRICS)
        fixed = self.index >> 30 & 1
        base = int(msr_index.MSR_CORE_PERF_FIXED_CTR0 if fixed else msr_index.MSR_IA32_PERFCTR0)
        return base + (self.index & 0xFFFF)

    @property
    def name(self) -> str:
        """The MSR's name, or the counter that RDPMC read."""
        if self.kind == "rdpmc":
            return f"fixed{self.index & 0xFFFF}" if self.index >> 30 & 1 else f"pmc{self.index}"
        return msr_name(self.index)

    def describe(self) -> str:
        """The access in one line."""
        head = f"{self.kind} {self.name} ({self.index:#x})"
        if self.fault:
            value = "" if self.kind == "rdpmc" else f", value {self.value:#x}"
            return f"{head}: #GP{value}  at {self.place}"
        if self.pending:
            return head + (f": new {self.value:#x}" if self.kind == "wrmsr" else "") + f"  at {self.place}"
        if self.kind == "wrmsr" and self.old is not None:
            return f"{head}: old {self.old:#x} new {self.value:#x}  at {self.place}"
        return f"{head}: {self.value:#x}  at {self.place}"


@attrs.frozen
class Why:
    """How the program came to where it holds.

    Attributes:
        vector: of the exception or interrupt whose handler begins here; None if none does.
        error: its error code, None if it has none.
        cr2: the address of a page fault, None of anything else.
        kind: exception, interrupt, nmi, or "".
        cpl_before, cpl_after: privilege levels: where it was interrupted, and here.
        interrupted: rip of what was interrupted.
        exit: name of the last VM-exit since the session held last, None if there was none.
        points: numbers of the points that hold.
    """

    vector: int | None = None
    error: int | None = None
    cr2: int | None = None
    kind: str = ""
    cpl_before: int = 0
    cpl_after: int = 0
    interrupted: int | None = None
    exit: str | None = None
    points: tuple[int, ...] = ()


@attrs.frozen
class Hold:
    """Why the session holds, and what happened since it held last."""

    reason: str
    rip: int
    text: str
    accesses: tuple[Access, ...] = ()  # those that a watchpoint asked for
    recent: tuple[Access, ...] = ()  # the last few since the previous stop
    changed_registers: Mapping[str, int] = attrs.field(factory=dict)
    why: Why = Why()

    def describe(self) -> str:
        """The reason in words."""
        return self.text

    @property
    def ended(self) -> bool:
        """Whether the program cannot go on."""
        return self.reason in ENDED


@attrs.define
class Point:
    """A breakpoint, a watchpoint or a catchpoint.

    Attributes:
        number: by which it is known.
        kind: break, msr, memory or catch.
        address: where it waits, of break and memory; else -1.
        size: bytes from there, of memory.
        msr, last: first and last index, of msr; else -1.
        mode: READS, WRITES or both, of msr and memory.
        value, mask: only accesses whose value has these bits, under the mask.
        changes: only accesses that find or leave another value than there was.
        stage: before the access, or after it (and the handler of its VM-exit).
        caught: what is caught, of catch.
        condition: an expression that must hold, "" for none.
        ignore: how many times more it is passed over.
        once: it goes with its first stop.
        enabled: whether it waits at all.
        hits: how often it held, those passed over included.
    """

    number: int
    kind: str = "break"
    address: int = -1
    size: int = 0
    msr: int = -1
    last: int = -1
    mode: int = 0
    value: int | None = None
    mask: int = (1 << 64) - 1
    changes: bool = False
    stage: str = AFTER
    caught: str = ""
    condition: str = ""
    ignore: int = 0
    once: bool = False
    enabled: bool = True
    hits: int = 0
    place: str = ""
    test: Any = attrs.field(default=None, repr=False, eq=False)  # the condition, as conditions.py read it

    @property
    def text(self) -> str:
        """The point in words, without its condition and counts."""
        if self.kind == "break":
            return f"{'once ' if self.once else ''}at {self.place}"
        what = {READS: "reads", WRITES: "writes", READS | WRITES: "reads and writes"}.get(self.mode, "")
        if self.kind == "memory":
            return f"{what} of {self.size} byte{'s' if self.size > 1 else ''} at {self.place}"
        if self.kind == "catch":
            return f"catch {self.caught}"
        if self.msr == 0 and self.last == (1 << 32) - 1:
            found = f"{what} of all MSRs"
        elif self.last > self.msr:
            found = f"{what} of MSRs {self.msr:#x} to {self.last:#x}"
        else:
            found = f"{what} of {msr_name(self.msr)} ({self.msr:#x})"
        if self.value is not None:
            found += f" with {self.value:#x}"
            found += f" under mask {self.mask:#x}" if self.mask != (1 << 64) - 1 else ""
        return found + (", changes only" if self.changes else "") + self._stage()

    def _stage(self) -> str:
        return ", before" if self.stage == BEFORE else ""

    def describe(self) -> str:
        """The point in words."""
        found = self.text
        if self.condition:
            found += f" if {self.condition}"
        if not self.enabled:
            found += ", disabled"
        if self.ignore:
            found += f", ignored {self.ignore} times more"
        if self.hits:
            found += f", hit {self.hits} time{'s' if self.hits > 1 else ''}"
        return found


@attrs.frozen
class Thread:
    """A core, a vCPU or a program of the host, as `threads` lists them."""

    number: int
    kind: str
    name: str
    rip: int
    state: str
    current: bool


def counted(text: object, what: str) -> int:
    """A count that is a whole number, 0 or more.

    Raises:
        ConfigError: it is none.
    """
    if not isinstance(text, int) or isinstance(text, bool) or not 0 <= text < 1 << 40:
        raise ConfigError(what, f"{shown(text)} is not a count", "0 to 2**40 - 1")
    return text
