"""A stopped system to look at: registers, PMU, memory, places; nothing here moves or alters it."""

from __future__ import annotations

import difflib
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vpmu_emu.asm.disassemble import Instruction, disassemble_one
from vpmu_emu.asm.program import Line, Program
from vpmu_emu.checks import CheckError, evaluate_text
from vpmu_emu.debug.points import Access, Thread
from vpmu_emu.errors import ConfigError
from vpmu_emu.linux.trace_kinds import LINUX_KINDS
from vpmu_emu.machine.clock import tsc_value
from vpmu_emu.machine.ring import (
    ACCESS_EXITS,
    ACCESS_NAMES,
    MACHINE_KINDS,
    TR_GUEST_RDMSR,
    TR_GUEST_RDPMC,
    TR_GUEST_WRMSR,
    TR_GUEST_WRMSR_BLIND,
    TR_INTERCEPT,
    TR_MSR_FAULT,
    TR_PRIVILEGE,
    TR_RDPMC_FAULT,
)
from vpmu_emu.numerals import shown, whole
from vpmu_emu.system import REGISTERS, System, ram_pieces
from vpmu_emu.tables.msrs import by_name, value_words
from vpmu_emu.tables.vmcs import vmcs_field

ACCESS_KINDS = {
    TR_GUEST_RDMSR: "rdmsr",
    TR_GUEST_WRMSR: "wrmsr",
    TR_GUEST_WRMSR_BLIND: "wrmsr",
    TR_GUEST_RDPMC: "rdpmc",
}
_LONGEST = 15  # bytes of an instruction
_ALL = (1 << 64) - 1
_FRAME = (1 << 52) - (1 << 12)


class _Values(dict[str, Any]):
    """A result of which only that is made which is asked for: a condition may be asked very often."""

    def __init__(self, system: System, registers: Callable[[], dict[str, int]]) -> None:
        super().__init__()
        self._system = system
        self._light: dict[str, Callable[[], Any]] = {
            "instructions": lambda: system.instructions,
            "cycles": lambda: int(system.core.t) >> 4,
            "cycles_by": system.cycles_by,
            "exits": system.exits,
            "msr": system.msr_statistics,
            "pmis": lambda: int(system.core.stats.pmis),
            "pmis_hw": lambda: int(system.core.stats.pmis_hw),
            "registers": registers,
            "serial": lambda: system.serial,
            "counters": self._counters,
            "global_status": lambda: int(system.guest_pmu()["global_status"]),
            "hw": system.hardware_pmu,
        }

    def _counters(self) -> dict[str, int]:
        view = self._system.guest_pmu()
        return {f"{k}{i}": int(v) for k in ("pmc", "fixed") for i, v in enumerate(view[k])}

    def __contains__(self, key: object) -> bool:
        if key not in self._light and not len(self):
            self._all()
        return key in self._light or super().__contains__(key)

    def __missing__(self, key: str) -> Any:
        if key in self._light:
            return self._light[key]()
        self._all()
        return self[key]

    def _all(self) -> None:
        self.update(self._system.result(self._system.stop(0, "running")).to_json())


class Looking:
    """What there is to see of a system that does not move."""

    system: System
    program: Program
    _thread: tuple[str, int] = ("core", 0)  # whose registers are meant: a core, vCPU or task, and its row
    _seen: int = 0  # events of the trace before the session went on
    _ring_from: int = 0  # what came before has been overwritten by a future that was left

    # --- looking --------------------------------------------------------------------------------

    @property
    def rip(self) -> int:
        """Address of the next instruction."""
        return self.registers()["rip"]

    def registers(self) -> dict[str, int]:
        """rax … r15, rip, rflags of the selected thread."""
        return self._registers_of(*self._thread)

    def _registers_of(self, kind: str, row: int) -> dict[str, int]:
        system = self.system
        if kind == "vcpu":
            from vpmu_emu.views.registers import registers

            values = registers(system.S, system.M, row)
        else:
            holder: Any
            if kind == "core":
                holder = system.cores[row]
            else:
                task = system.S.tasks[row]
                cpu = int(task.on_cpu)
                holder = system.cores[cpu] if cpu >= 0 and int(task.vcpu) < 0 else task
            values = [*map(int, holder.regs[:16]), int(holder.rip), int(holder.rflags)]
        return dict(zip((*REGISTERS, "rip", "rflags"), values, strict=True))

    @property
    def cpl(self) -> int:
        """The privilege level of the selected core or vCPU: 0 or 3."""
        core = self._guest_core()
        return self._vmread("GUEST_CS_SELECTOR") & 3 if core is None else int(core.cpl)

    def _guest_core(self) -> Any:
        # The core that holds all of the guest's state, None while it lies in its VMCS.
        if not self.system.has_host:
            return self.system.cores[self._thread[1]]
        from vpmu_emu.views.registers import core_of

        cpu = core_of(self.system.S, self._vcpu)
        core = self.system.cores[cpu]
        return core if cpu >= 0 and int(core.vmx.nonroot) else None

    @property
    def _vcpu(self) -> int:
        kind, row = self._thread
        return row if kind == "vcpu" else 0

    def _vmread(self, name: str) -> int:
        at = int(self.system.S.vcpus[self._vcpu].vmcs) + vmcs_field(name).offset
        return int.from_bytes(self.system.M[at : at + 8].tobytes(), "little")

    # --- cores, vCPUs, programs of the host -----------------------------------------------------------

    def _thread_rows(self) -> list[tuple[str, int]]:
        if not self.system.has_host:
            return [("core", k) for k in range(len(self.system.cores))]
        S = self.system.S
        found = [("vcpu", k) for k, vcpu in enumerate(S.vcpus) if int(vcpu.used)] or [("vcpu", 0)]
        return found + [("task", k) for k, task in enumerate(S.tasks) if int(task.used)]

    def threads(self) -> list[Thread]:
        """Cores, or vCPUs and programs of the host: number, what it is, where and how it is."""
        return [
            Thread(n, kind, *self._thread_words(kind, row), (kind, row) == self._thread)
            for n, (kind, row) in enumerate(self._thread_rows())
        ]

    def _thread_words(self, kind: str, row: int) -> tuple[str, int, str]:
        rip = self._registers_of(kind, row)["rip"]
        system = self.system
        if kind == "core":
            state = ("running", "halted", "waits for a startup message")[int(system.cores[row].activity)]
            return f"core {row}", rip, state
        if kind == "vcpu":
            from vpmu_emu.views.registers import core_of

            cpu = core_of(system.S, row)
            if cpu < 0:
                return f"vCPU {row}", rip, "not loaded"
            inside = int(system.cores[cpu].vmx.nonroot)
            return f"vCPU {row}", rip, f"{'in the guest' if inside else 'in KVM'} on core {cpu}"
        from vpmu_emu.views.tasks import tasks_report

        told = tasks_report(system.S, system.host_programs())
        here = [k for k, task in enumerate(system.S.tasks) if int(task.used)].index(row)
        task = told[here]
        cpu = int(system.S.tasks[row].on_cpu)
        where = f" on core {cpu}" if cpu >= 0 else ""
        return f"{task['program']} (pid {task['pid']})", rip, task["state"] + where

    def select(self, number: int) -> Thread:
        """Have registers and rip be those of another thread; stepping stays the guest's.

        Raises:
            ConfigError: there is no such thread.
        """
        threads = self.threads()
        if not 0 <= number < len(threads):
            raise ConfigError("thread", f"there is no thread {shown(number)}", f"0 to {len(threads) - 1}")
        self._thread = self._thread_rows()[number]
        return self.threads()[number]

    def _select_stopped(self) -> None:
        # The core that ran last, or the vCPU that is loaded on it.
        cpu = int(self.system.E.cpu)
        if not self.system.has_host:
            self._thread = ("core", cpu)
        elif (row := int(self.system.S.percpu[cpu].vcpu)) >= 0:
            self._thread = ("vcpu", row)
        elif self._thread[0] != "vcpu":
            self._thread = ("vcpu", 0)

    def pmu(self) -> dict[str, int]:
        """The guest's view of its PMU: controls by MSR name, counters as pmcN and fixedN."""
        view = self.system.guest_pmu()
        found = {
            "IA32_PERF_GLOBAL_CTRL": view["global_ctrl"],
            "IA32_PERF_GLOBAL_STATUS": view["global_status"],
            "IA32_FIXED_CTR_CTRL": view["fixed_ctr_ctrl"],
        }
        found |= {f"IA32_PERFEVTSEL{i}": v for i, v in enumerate(view["eventsel"])}
        found |= {f"pmc{i}": v for i, v in enumerate(view["pmc"])}
        found |= {f"fixed{i}": v for i, v in enumerate(view["fixed"])}
        return {name: int(value) for name, value in found.items()}

    def pmu_words(self, name: str, value: int) -> str:
        """What a control register of `pmu` says, in words; empty for counters."""
        if not name.startswith("IA32") or not value:
            return ""
        return value_words(by_name(name), value, self.system.model.events)

    def exits(self) -> dict[str, int]:
        """VM-exits by reason so far."""
        return self.system.exits()

    def msr_traffic(self, count: int = 20) -> list[Access]:
        """The last accesses of the guest, oldest first."""
        return self._accesses(0)[-count:]

    def recent_events(self, count: int = 20) -> list[str]:
        """The last lines of the event trace."""
        return self._lines(self._events(0)[-count:])

    def events_since_stop(self, kinds: Sequence[str] = ()) -> list[str]:
        """Lines of the trace since the session held before, of the named kinds or all.

        Raises:
            ConfigError: a kind that there is not.
        """
        wanted = {self._kind(name) for name in kinds}
        events = self._events(self._seen)
        kept = [int(event["kind"]) in wanted for event in events] if wanted else None
        return self._lines(events, kept)

    def event_counts(self) -> dict[str, int]:
        """How often each kind of event came since the session held before, the most frequent first."""
        known = MACHINE_KINDS | LINUX_KINDS
        counts = Counter(known[int(kind)] for kind in self._events(self._seen)["kind"])
        return dict(counts.most_common())

    @staticmethod
    def _kind(name: str) -> int:
        for number, known in (MACHINE_KINDS | LINUX_KINDS).items():
            if known == name:
                return number
        allowed = " ".join(sorted({*MACHINE_KINDS.values(), *LINUX_KINDS.values()}))
        raise ConfigError("events", f"no kind of event is called {shown(name)}", allowed)

    def _lines(self, events: Any, kept: list[bool] | None = None) -> list[str]:
        from vpmu_emu.traces.text import lines

        found = list(lines(events, place=self.program.place, names=self.system.model.events))
        if kept is None or len(found) != len(kept):
            return found
        return [line for line, keep in zip(found, kept, strict=True) if keep]

    def _events(self, since: int) -> Any:
        return self.system.events_since(max(since, self._ring_from))

    def _accesses(self, since: int) -> list[Access]:
        found = []
        exits = False
        for event in self._events(since):
            kind, rip = int(event["kind"]), int(event["rip"])
            a, b, c = int(event["a"]), int(event["b"]), int(event["c"])
            if kind == TR_INTERCEPT:
                exits = bool(c & ACCESS_EXITS)
            elif kind in ACCESS_KINDS:
                old = c if kind == TR_GUEST_WRMSR else None
                place = self.describe_place(rip)
                found.append(Access(ACCESS_KINDS[kind], a, b, old, rip, place, False, exits))
            elif kind == TR_MSR_FAULT:
                word = "wrmsr" if c & 1 else "rdmsr"
                found.append(Access(word, a, b, None, rip, self.describe_place(rip), True, exits))
            elif kind == TR_PRIVILEGE:
                place = self.describe_place(rip)
                found.append(Access(ACCESS_NAMES[a], b >> 32, 0, None, rip, place, True))
            elif kind == TR_RDPMC_FAULT:
                found.append(Access("rdpmc", a, 0, None, rip, self.describe_place(rip), True, exits))
        return found

    def read(self, address: int, size: int) -> bytes:
        """Guest memory.

        Raises:
            ConfigError: outside it.
        """
        pieces = ram_pieces(self.system.ram_size)
        if not any(base <= address and address + size <= base + length for base, _, length in pieces):
            where = ", ".join(f"{base:#x} to {base + length - 1:#x}" for base, _, length in pieces)
            raise ConfigError(shown(hex(address)).strip("'"), "outside memory", where)
        return self.system.read(address, size)

    def evaluate(self, text: str, *, place: bool = False) -> int | str | None:
        """A register, symbol, counter, memory word or arithmetic over them.

        With `place` it is an address: names of the program come before values of the run.

        Raises:
            VpmuError: what cannot be read, with a caret.
        """
        return evaluate_text(text.replace("$", ""), self.program, self, place=place)

    @property
    def values(self) -> dict[str, Any]:
        """The result so far, as `evaluate` needs it; what is asked for is made."""
        return _Values(self.system, self.registers)

    def tsc(self) -> int:
        """What RDTSC would give the guest now."""
        core = self.system.core
        found = tsc_value(core, int(core.t))
        if not self.system.has_host:
            return (found + int(core.tsc_adjust)) & _ALL
        return (found + self._vmread("TSC_OFFSET")) & _ALL

    # --- places ---------------------------------------------------------------------------------

    def locate(self, text: str) -> int:
        """The address that an address, symbol, symbol+N, line or file:line means.

        Raises:
            ConfigError: nothing there; with the nearest name.
        """
        text = text.strip().removeprefix("*")
        file, _, number = text.rpartition(":")
        if re.fullmatch("[0-9]+", number):
            return self._line_address(file or self.program.name, whole(number.lstrip("0") or "0"))
        try:
            value = self.evaluate(text, place=True)
        except CheckError:
            near = difflib.get_close_matches(text, self._labels(), 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError("place", f"nothing is called {shown(text)}{hint}") from None
        if not isinstance(value, int) or not 0 <= value < 1 << 64:
            raise ConfigError("place", f"{shown(text)} is not an address")
        return value

    def _labels(self) -> list[str]:
        return [name for name in self.program.symbols if name not in self.program.equates]

    def _line_address(self, file: str, number: int | None) -> int:
        rows = [
            line
            for line in self.program.lines
            if line.kind != "data" and (line.file == file or Path(line.file).name == file)
        ]
        if not rows:
            files = " ".join(sorted({line.file for line in self.program.lines}))
            raise ConfigError("place", f"no code comes from {file!r}", files)
        later = [line for line in rows if number is not None and line.line >= number]
        if not later:
            last = max(line.line for line in rows)
            which = "such a line" if number is None else f"line {number}"
            raise ConfigError("place", f"{file} has no code at or after {which}", f"1 to {last}")
        return min(later, key=lambda line: (line.line, line.addr)).addr

    def describe_place(self, address: int) -> str:
        """`0x100010 <loop+4> file.s:12: add rax, rbx`."""
        text = self._named(address)
        line = self.program.line_at(address)
        if line is not None:
            text += f" {line.file}:{line.line}: {_statement(line)}"
        return text

    def _named(self, address: int) -> str:
        text = f"{address:#x}"
        below = [
            (value, name)
            for name, value in self.program.symbols.items()
            if name not in self.program.equates and value <= address
        ]
        if below and self.program.holds(address):
            value, name = max(below)
            text += f" <{name}>" if value == address else f" <{name}+{address - value}>"
        return text

    def linear(self, address: int) -> int | None:
        """The physical address behind a linear one of the guest, None if nothing is mapped there."""
        core = self._guest_core()
        table = (self._vmread("GUEST_CR3") if core is None else int(core.cr3)) & _FRAME
        if not table:
            return address
        for level in (3, 2, 1, 0):
            shift = 12 + 9 * level
            entry = int.from_bytes(self.system.read(table + (address >> shift & 0x1FF) * 8, 8), "little")
            if not entry & 1:
                return None
            if level == 0 or (level < 3 and entry & 0x80):
                inside = (1 << shift) - 1
                return entry & _FRAME & ~inside | address & inside
            table = entry & _FRAME
        return None

    def instruction(self, address: int) -> Instruction | None:
        """The instruction in memory at a linear address; None if there is none that is known."""
        pieces = []
        for at in range(address, address + _LONGEST):
            place = self.linear(at)
            if place is None:
                break
            pieces.append(self.system.read(place, 1))
        return disassemble_one(b"".join(pieces), address) if pieces else None

    def instructions(self, address: int, count: int) -> list[str]:
        """`count` instructions as they stand in memory from `address` on, with their bytes.

        Where memory holds what the source put there its statement is shown, else what the bytes are.
        """
        source = {line.addr: line for line in self.program.lines if line.kind == "insn"}
        known = sorted(source)
        found: list[str] = []
        at = address
        while len(found) < count:
            place = self.program.physical(at)
            code = self.read(place, max(1, min(15, self.system.ram_size - place)))
            line = source.get(at)
            if line is not None and self.program.read(at, line.size) == code[: line.size]:
                found.append(f"{at:#x}: {code[: line.size].hex(' '):24} {_statement(line)}")
                at += line.size
                continue
            insn = disassemble_one(code, at)
            if insn is not None:
                target = "" if insn.target is None else f"  # {self._named(insn.target)}"
                found.append(f"{at:#x}: {code[: insn.size].hex(' '):24} {insn.text}{target}")
                at += insn.size
                continue
            found.append(f"{at:#x}: {code[:8].hex(' '):24} … (not in the emulated instruction set)")
            following = bisect_right(known, at)
            if following == len(known):
                break
            at = known[following]
        return found

    def source_around(self, address: int, context: int = 5) -> list[str]:
        """Source lines around an address, the one there marked."""
        line = self.program.line_at(address)
        if line is None:
            raise ConfigError("list", f"no source at {address:#x}")
        text = self.program.source.get(line.file)
        if text is None:
            raise ConfigError("list", f"{line.file}:{line.line}: the source file is not here")
        first = max(1, line.line - context)
        return [
            f"{'=>' if n == line.line else '  '} {n:4}  {text[n - 1]}"
            for n in range(first, min(len(text), line.line + context) + 1)
        ]


def _statement(line: Line) -> str:
    return " ".join(line.text.split())


