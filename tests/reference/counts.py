"""What a guest's counters hold in each mode, by one rule: whether an access leaves the guest.

Written from the manuals' and KVM's rules alone, in plain Python, an instruction at a time; it shares no
code with what it is compared with. An instruction that stays in the guest retires with the enables that it
finds, and then takes effect; one that exits takes effect in KVM, and KVM counts it afterwards, in software.
A read is done before its own instruction counts, wherever it is done.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

PERFEVTSEL, PMC, FIXED_CTR = 0x186, 0x4C1, 0x309
FIXED_CTR_CTRL, STATUS, GLOBAL_CTRL, STATUS_RESET = 0x38D, 0x38E, 0x38F, 0x390
WIDTH = 48
INSTRUCTIONS, BRANCHES = 0xC0, 0xC4
OS, ENABLE = 1 << 17, 1 << 22
CPUID, RDPMC = "cpuid", "rdpmc"


@dataclass(frozen=True)
class Rules:
    """What of a mode its guests can tell.

    Attributes:
        exits: what leaves the guest: MSRs by number, CPUID, RDPMC.
        lazy: everything of the PMU does, until the guest's first access to it.
        denied: events (0 to 2 for fixed counters) that a filter denies.
        clears: a denied fixed counter is cleared whenever FIXED_CTR_CTRL is written.
    """

    exits: frozenset[int | str] = frozenset()
    lazy: bool = False
    denied: frozenset[int] = frozenset()
    clears: bool = False


def selectors(gp: int) -> set[int | str]:
    """Selectors of a guest with so many general-purpose counters."""
    return {FIXED_CTR_CTRL, *(PERFEVTSEL + n for n in range(gp))}


def controls() -> set[int | str]:
    """GLOBAL_CTRL and its kin."""
    return {GLOBAL_CTRL, STATUS, STATUS_RESET}


def all_of_it(gp: int, fixed: int) -> set[int | str]:
    """Every access to the PMU."""
    counters = {*(PMC + n for n in range(gp)), *(FIXED_CTR + n for n in range(fixed))}
    return selectors(gp) | controls() | counters | {RDPMC}


@dataclass
class Guest:
    """The PMU of a guest with `gp` and `fixed` counters, and what it has read."""

    gp: int
    fixed: int
    rules: Rules
    counters: dict[int, int] = field(default_factory=dict)  # by bit of GLOBAL_CTRL
    selected: dict[int, int] = field(default_factory=dict)
    fixed_ctrl: int = 0
    global_ctrl: int = 0
    status: int = 0
    touched: bool = False
    read: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counters = dict.fromkeys(self.bits(), 0)
        self.selected = dict.fromkeys(range(self.gp), 0)
        self.global_ctrl = (1 << self.gp) - 1  # RESET

    def bits(self) -> Iterator[int]:
        """Every counter's bit."""
        yield from range(self.gp)
        yield from range(32, 32 + self.fixed)

    # --- counting
    def _is_on(self, bit: int, branch: bool) -> bool:
        if not self.global_ctrl >> bit & 1:
            return False
        if bit >= 32:
            here = self.fixed_ctrl >> 4 * (bit - 32) & 1
            return bool(here) and bit == 32 and 0 not in self.rules.denied
        selector = self.selected[bit]
        event = selector & 0xFFFF
        if not (selector & ENABLE and selector & OS) or event in self.rules.denied:
            return False
        return event == INSTRUCTIONS or (event == BRANCHES and branch)

    def _count(self, branch: bool) -> None:
        for bit in self.bits():
            if self._is_on(bit, branch):
                self.counters[bit] = (self.counters[bit] + 1) % (1 << WIDTH)
                if self.counters[bit] == 0:
                    self.status |= 1 << bit

    # --- instructions
    def plain(self, n: int = 1, branch: bool = False) -> None:
        """Instructions that neither exit nor touch the PMU."""
        for _ in range(n):
            self._count(branch)

    def cpuid(self) -> None:
        """CPUID: it counts once, wherever it is done."""
        self._count(False)

    def _leaves(self, what: int | str) -> bool:
        first = self.rules.lazy and not self.touched
        self.touched = True
        return first or what in self.rules.exits

    def wrmsr(self, index: int, value: int) -> None:
        """A write that does not fault."""
        if self._leaves(index):
            self._write(index, value)
            self._count(False)
        else:
            self._count(False)
            self._write(index, value)

    def _write(self, index: int, value: int) -> None:
        if index == GLOBAL_CTRL:
            self.global_ctrl = value
        elif index == STATUS_RESET:
            self.status &= ~value
        elif index == FIXED_CTR_CTRL:
            self.fixed_ctrl = value
            if self.rules.clears:
                for j in range(self.fixed):
                    if j in self.rules.denied:
                        self.counters[32 + j] = 0
        elif PERFEVTSEL <= index < PERFEVTSEL + self.gp:
            self.selected[index - PERFEVTSEL] = value
        elif PMC <= index < PMC + self.gp:
            self.counters[index - PMC] = value
        else:
            self.counters[32 + index - FIXED_CTR] = value

    def rdpmc(self, bit: int) -> None:
        """RDPMC of a counter that the guest has."""
        self._leaves(RDPMC)
        self.read.append(self.counters[bit])
        self._count(False)

    def rdmsr(self, index: int) -> None:
        """RDMSR of GLOBAL_STATUS, GLOBAL_CTRL, or FIXED_CTR_CTRL."""
        self._leaves(index)
        registers = {STATUS: self.status, GLOBAL_CTRL: self.global_ctrl, FIXED_CTR_CTRL: self.fixed_ctrl}
        self.read.append(registers[index])
        self._count(False)


# --- random programs ------------------------------------------------------------------------------------
Step = tuple[str, int, int]


def steps(r: random.Random, gp: int, fixed: int, wraps: bool) -> list[Step]:
    """What a guest does, one thing after the other; `wraps`: counters may begin right below their end."""
    found: list[Step] = []
    bits = [*range(gp), *range(32, 32 + fixed)]
    for _ in range(r.randint(5, 40)):
        kind = r.choice(("nop", "jump", "cpuid", "select", "select", "fixed", "global", "global", "load",
                         "read", "status", "reset"))  # fmt: skip
        if kind in ("nop", "jump", "cpuid"):
            found.append((kind, r.randint(1, 5), 0))
        elif kind == "select":
            flags = r.choice((0x430000, 0x430000, 0x410000, 0x30000))  # user mode alone; not enabled
            found.append((kind, r.randrange(gp), r.choice((INSTRUCTIONS | flags, BRANCHES | flags, 0))))
        elif kind == "fixed":
            found.append((kind, r.choice((0, 1, 3, 2)) if fixed else 0, 0))
        elif kind == "global":
            found.append((kind, sum(1 << bit for bit in bits if r.random() < 0.6), 0))
        elif kind in ("load", "read"):
            high = (1 << WIDTH) - r.randint(1, 30)
            low = r.randrange(1 << 40)
            found.append((kind, r.choice(bits), high if wraps and r.random() < 0.5 else low))
        elif kind == "reset":
            found.append((kind, sum(1 << bit for bit in bits if r.random() < 0.5), 0))
        else:
            found.append((kind, 0, 0))
    return [*found, ("global", 0, 0), *(("read", bit, 0) for bit in bits), ("status", 0, 0)]


def msr_of(bit: int) -> int:
    """A counter's register."""
    return PMC + bit if bit < 32 else FIXED_CTR + bit - 32


def program(todo: list[Step]) -> str:
    """The steps in assembler; what is read lies at `found`, 16 bytes each."""
    lines, labels, reads = ["_start: lea r15, [rip + found]"], 0, 0

    def access(instruction: str, index: int, value: int = 0) -> None:
        lines.append(f"mov ecx, {index:#x}; mov eax, {value & 0xFFFFFFFF:#x}; mov edx, {value >> 32:#x}")
        lines.append(instruction)

    def keep() -> None:
        nonlocal reads
        reads += 1
        lines.append("mov [r15], eax; mov [r15 + 4], edx; add r15, 8")

    for kind, a, b in todo:
        if kind == "nop":
            lines += ["nop"] * a
        elif kind == "cpuid":
            lines += ["xor eax, eax; cpuid"] * a
        elif kind == "jump":
            for _ in range(a):
                lines.append(f"jmp l{labels}\nl{labels}:")
                labels += 1
        elif kind == "read":
            access("rdpmc", a if a < 32 else 1 << 30 | a - 32)
            keep()
        elif kind == "status":
            access("rdmsr", STATUS)
            keep()
        else:
            index = {"select": PERFEVTSEL + a, "load": msr_of(a)}.get(kind) or {
                "fixed": FIXED_CTR_CTRL, "global": GLOBAL_CTRL, "reset": STATUS_RESET,
            }[kind]  # fmt: skip
            access("wrmsr", index, b if kind in ("select", "load") else a)
    lines.append(f"mov eax, 0; out 0xf4, al\n.data\n.balign 8\nfound: .zero {8 * reads + 8}")
    return ".intel_syntax noprefix\n.globl _start\n" + "\n".join(lines) + "\n"


def predict(todo: list[Step], gp: int, fixed: int, rules: Rules) -> list[int]:
    """What the program reads in a mode with these rules."""
    guest = Guest(gp, fixed, rules)
    guest.plain()  # lea
    for kind, a, b in todo:
        if kind in ("nop", "jump"):
            guest.plain(a, branch=kind == "jump")
        elif kind == "cpuid":
            for _ in range(a):
                guest.plain()
                guest.cpuid()
        elif kind in ("read", "status"):
            guest.plain(3)
            if kind == "read":
                guest.rdpmc(a)
            else:
                guest.rdmsr(STATUS)
            guest.plain(3)
        else:
            guest.plain(3)
            if kind == "select":
                guest.wrmsr(PERFEVTSEL + a, b)
            elif kind == "load":
                guest.wrmsr(msr_of(a), b)
            else:
                index = {"fixed": FIXED_CTR_CTRL, "global": GLOBAL_CTRL, "reset": STATUS_RESET}[kind]
                guest.wrmsr(index, a)
    return guest.read
