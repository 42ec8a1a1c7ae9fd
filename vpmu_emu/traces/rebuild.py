"""What a trace's accesses have made of each PMU: selectors, counters, enables, each with its line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import attrs

from vpmu_emu.machine import msr_index
from vpmu_emu.report import Table
from vpmu_emu.tables.events import LISTS
from vpmu_emu.tables.msrs import msr_name, row_of, value_words
from vpmu_emu.traces.parse import Access, Entry, Exit, Item, Lost, Problem
from vpmu_emu.views.words import rdpmc_name

WIDTH = 48  # of a counter: what a 32-bit write to a general-purpose one is extended to
_MASK = (1 << WIDTH) - 1
_PMC, _ALIAS, _FIXED = (int(n) for n in (msr_index.MSR_IA32_PERFCTR0, msr_index.MSR_IA32_PMC0,
                                         msr_index.MSR_CORE_PERF_FIXED_CTR0))  # fmt: skip
_SELECTOR = int(msr_index.MSR_P6_EVNTSEL0)
_FIXED_CTRL = int(msr_index.MSR_CORE_PERF_FIXED_CTR_CTRL)
_STATUS = int(msr_index.MSR_CORE_PERF_GLOBAL_STATUS)
_CTRL = int(msr_index.MSR_CORE_PERF_GLOBAL_CTRL)
_RESET = int(msr_index.MSR_CORE_PERF_GLOBAL_OVF_CTRL)
_SET = int(msr_index.MSR_CORE_PERF_GLOBAL_STATUS_SET)
_RDPMC_FIXED = int(msr_index.INTEL_PMC_FIXED_RDPMC_BASE)
_EN = 1 << 22
# Families that make up a PMU.
_FAMILIES = (
    "IA32_PERFEVTSEL", "IA32_PMC", "IA32_FIXED_CTR", "IA32_FIXED_CTR_CTRL", "IA32_PERF_GLOBAL_CTRL",
    "IA32_PERF_GLOBAL_STATUS",
)  # fmt: skip


@attrs.define
class Register:
    """The last that is known of a register.

    Attributes:
        value: its value; ns, line: since when, and from which line.
        doubt: events that may have changed it are missing since then.
    """

    value: int
    ns: int
    line: int
    doubt: bool = False


@attrs.define
class Pmu:
    """A PMU as far as a trace tells it; `registers` by index."""

    owner: str
    registers: dict[int, Register] = attrs.field(factory=dict)
    cpu: int = -1  # where its accesses were last

    def counters(self, events: str = LISTS[0]) -> Iterator[tuple[str, int | None, str, bool | None]]:
        """(name, value, event or rings, whether it is enabled) of each counter of which something is known.

        None where the trace does not say it.
        """
        ctrl = self._value(_CTRL)
        for k in range(8):
            selector, value = self._value(_SELECTOR + k), self._value(_PMC + k)
            if selector is None and value is None:
                continue
            words = "" if selector is None else value_words(_SELECTOR + k, selector, events)
            on = None if selector is None or ctrl is None else bool(selector & _EN and ctrl >> k & 1)
            yield f"pmc{k}", value, words, on
        fixed_ctrl = self._value(_FIXED_CTRL)
        for k in range(4):
            field = None if fixed_ctrl is None else fixed_ctrl >> 4 * k & 0xF
            value = self._value(_FIXED + k)
            if not field and value is None:
                continue
            rings = "" if not field else " ".join(
                word for bit, word in enumerate(("os", "usr", "any", "int")) if field >> bit & 1
            )  # fmt: skip
            on = None if field is None or ctrl is None else bool(field & 3 and ctrl >> 32 + k & 1)
            yield f"fixed{k}", value, rings, on

    def _value(self, index: int) -> int | None:
        found = self.registers.get(index)
        return found.value if found else None


class Rebuilt:
    """PMUs of CPUs and vCPUs, access by access.

    A vCPU is told by the thread that runs it: kvm_entry and kvm_exit say its number, kvm_msr does not.

    Args:
        events: the CPU's list of PMU events.
    """

    def __init__(self, events: str = LISTS[0]) -> None:
        self.pmus: dict[str, Pmu] = {}
        self.lost: list[Lost] = []
        self.problems: list[Problem] = []
        self.accesses = 0
        self.read = 0
        self._vcpus: dict[int, int] = {}
        self._events = events

    def add(self, item: Item) -> str | None:
        """The next item; an access in words. Modifies this."""
        if isinstance(item, Problem):
            self.problems.append(item)
            return None
        if isinstance(item, Lost):
            self._lose(item)
            return None
        self.read += 1
        if isinstance(item, Exit | Entry) and item.vcpu is not None:
            self._vcpus[item.where.pid] = item.vcpu
        if not isinstance(item, Access):
            return None
        self.accesses += 1
        owner = self._owner(item)
        pmu = self.pmus.setdefault(owner, Pmu(owner))
        pmu.cpu = item.where.cpu
        if not item.fault:
            _take(pmu, item)
        return self._words(owner, item)

    def _owner(self, access: Access) -> str:
        pid = access.where.pid
        if access.by == "host" or (access.by == "guest" and pid not in self._vcpus):
            return f"cpu{access.where.cpu}"
        if pid in self._vcpus:
            return f"vcpu{self._vcpus[pid]} of {access.where.comm}-{pid}"
        return f"vCPU of {access.where.comm}-{pid}"

    def _lose(self, lost: Lost) -> None:
        self.lost.append(lost)
        for pmu in self.pmus.values():
            # Without a CPU, or of a vCPU that may have gone there, nothing is certain any more.
            if lost.cpu is None or pmu.cpu == lost.cpu or pmu.owner.startswith("v"):
                for register in pmu.registers.values():
                    register.doubt = True

    def _words(self, owner: str, access: Access) -> str:
        where = access.where
        if access.what == "rdpmc":
            name, words = rdpmc_name(access.index), ""
        else:
            name = msr_name(access.index)
            said = _said(access.index, access.value, self._events)
            words = f" ({said})" if said else ""
        fault = " #GP" if access.fault else ""
        time = f"{where.ns // 10**9}.{where.ns % 10**9:09}".removesuffix("000")
        how = "" if access.by != "kvm" else ", exited"
        return f"{time} {owner}: {access.what} {name} = {access.value:#x}{words}{fault}{how}"

    def tables(self) -> list[Table]:
        """A table of registers and one of counters for each PMU of which something is known."""
        found = []
        for owner, pmu in sorted(self.pmus.items()):
            if not pmu.registers:
                continue
            found.append(Table(f"PMU of {owner}", ("register", "value", "is", "line", ""), tuple(
                (msr_name(index), f"{r.value:#x}", _said(index, r.value, self._events), r.line,
                 "before events were lost" if r.doubt else "")
                for index, r in sorted(pmu.registers.items())
            )))
            counters = tuple(
                (name, "?" if value is None else f"{value:#x}", words or "?", _ENABLED[on])
                for name, value, words, on in pmu.counters(self._events)
            )
            if counters:
                found.append(Table("", ("counter", "value", "counts", "enabled"), counters))
        return found

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "schema": 1,
            "accesses": self.accesses,
            "pmus": {
                owner: {
                    "registers": {
                        msr_name(index): {
                            **attrs.asdict(r), "words": _said(index, r.value, self._events)
                        }
                        for index, r in sorted(pmu.registers.items())
                    },
                    "counters": {
                        name: {"value": value, "counts": words, "enabled": on}
                        for name, value, words, on in pmu.counters(self._events)
                    },
                }
                for owner, pmu in sorted(self.pmus.items())
                if pmu.registers
            },
            "lost": [attrs.asdict(lost) for lost in self.lost],
            "problems": [attrs.asdict(problem) for problem in self.problems],
        }


_ENABLED = {None: "?", True: "yes", False: "no"}


def _said(index: int, value: int, events: str) -> str:
    """A value by its fields; "" where that is the number again."""
    words = value_words(index, value, events) if row_of(index) else ""
    return "" if words in ("0", f"{value:#x}") else words


def rebuild(items: Iterable[Item], events: str = LISTS[0]) -> Rebuilt:
    """Of a whole trace."""
    found = Rebuilt(events)
    for item in items:
        found.add(item)
    return found


def _take(pmu: Pmu, access: Access) -> None:
    """What an access says of a PMU's registers."""
    where, index, value = access.where, access.index, access.value
    if access.what == "rdpmc":
        index = index & ~(1 << 30)  # the kernel's own RDPMC of a fixed counter has bit 30
        fixed = access.index & (1 << 30) or access.index & _RDPMC_FIXED
        number = access.index & 0xFF
        index = _FIXED + number if fixed else _PMC + number
        if number >= (4 if fixed else 8):
            return
    elif _ALIAS <= index < _ALIAS + 8:
        index += _PMC - _ALIAS
    elif access.what == "wrmsr" and _PMC <= index < _PMC + 8 and value >> 31 & 1:
        value |= _MASK & ~0xFFFF_FFFF  # SDM 3B 21.2.8: written through its old number it is sign-extended
    elif access.what == "wrmsr" and index in (_RESET, _SET):
        before = pmu.registers.get(_STATUS)
        if before is None:
            return
        value = before.value & ~value if index == _RESET else before.value | value
        pmu.registers[_STATUS] = Register(value, where.ns, where.number, before.doubt)
        return
    family = row_of(index)
    if family is not None and family[0].name in _FAMILIES:
        pmu.registers[index] = Register(value, where.ns, where.number)
