"""A system that can be stopped anywhere; only looks, so a debugged run ends in the same record."""

from __future__ import annotations

import difflib
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from vpmu_emu.asm.disassemble import disassemble_one
from vpmu_emu.asm.program import Line, Program
from vpmu_emu.checks import CheckError, evaluate_text
from vpmu_emu.errors import ConfigError
from vpmu_emu.load import load
from vpmu_emu.machine.ring import (
    TR_GUEST_RDMSR,
    TR_GUEST_RDPMC,
    TR_GUEST_WRMSR,
    TR_GUEST_WRMSR_BLIND,
    TR_MSR_FAULT,
)
from vpmu_emu.machine.state import N_BREAK, N_WATCH
from vpmu_emu.numerals import shown, whole
from vpmu_emu.options import Options, explained
from vpmu_emu.system import System, ram_pieces
from vpmu_emu.tables.msrs import by_name, msr_name, value_words

RECENT = 5
ACCESS_KINDS = {
    TR_GUEST_RDMSR: "rdmsr",
    TR_GUEST_WRMSR: "wrmsr",
    TR_GUEST_WRMSR_BLIND: "wrmsr",
    TR_GUEST_RDPMC: "rdpmc",
}


@attrs.frozen
class Access:
    """One RDMSR, WRMSR or RDPMC of the guest; `old` is what RDMSR would have given right before a write.

    It is None where it would have given nothing that KVM or the processor knows of: a #GP, or an answer of
    the VMM's own.
    """

    kind: str
    index: int
    value: int
    old: int | None
    rip: int
    place: str
    fault: bool = False

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
            return f"{head}: #GP, value {self.value:#x}  at {self.place}"
        if self.kind == "wrmsr" and self.old is not None:
            return f"{head}: old {self.old:#x} new {self.value:#x}  at {self.place}"
        return f"{head}: {self.value:#x}  at {self.place}"


@attrs.frozen
class Hold:
    """Why the session holds, and what happened since it held last."""

    reason: str
    rip: int
    text: str
    accesses: tuple[Access, ...] = ()  # those that a watchpoint asked for
    recent: tuple[Access, ...] = ()  # the last few since the previous stop
    changed_registers: Mapping[str, int] = attrs.field(factory=dict)

    def describe(self) -> str:
        """The reason in words."""
        return self.text

    @property
    def ended(self) -> bool:
        """Whether the program cannot go on."""
        return self.reason in (
            "debug-exit", "halted", "triple-fault", "shutdown", "reset", "hard-lockup", "max-insns",
        )  # fmt: skip


@attrs.frozen
class Point:
    """A breakpoint (address) or a watchpoint (MSR index and mode)."""

    number: int
    address: int = -1
    once: bool = False
    msr: int = -1
    mode: int = 0
    place: str = ""

    def describe(self) -> str:
        """The point in words."""
        if self.msr >= 0:
            what = {1: "reads", 2: "writes", 3: "reads and writes"}[self.mode]
            return f"{what} of {msr_name(self.msr)} ({self.msr:#x})"
        return f"{'once ' if self.once else ''}at {self.place}"


@explained
class Session:
    """One program under a debugger.

    Args:
        program: a program, or the path of a source file or an ELF executable.
        options, ready, asked: as for `System`.

    Raises:
        VpmuError: whatever is wrong with program or options.
    """

    def __init__(
        self,
        program: Program | str | Path,
        options: Options | None = None,
        /,
        *,
        ready: Callable[[], None] | None = None,
        **asked: Any,
    ) -> None:
        options = Options.of(asked, options)
        options.check()  # before a file is read
        if options.save is not None:
            raise ConfigError("save", "a debugger stops where it is told, and saves nothing", "vpmu run")
        options = attrs.evolve(options, trace=options.trace or True)
        if not isinstance(program, Program):
            program = load(program, options.defsym)
        self.system = System(program, options, ready=ready)
        self.program = self.system.program
        self._points: list[Point] = []
        self._number = 0
        self._ended: Hold | None = None
        self._before = self.system.registers()
        self._seen = 0
        self._note = ""

    # --- going on -------------------------------------------------------------------------------

    def step(self, count: int = 1) -> Hold:
        """Run `count` instructions, breakpoints and watchpoints heeded; Ctrl-C is a stop as in cont()."""
        if self._ended:
            return self._ended

        def go() -> Any:
            stop = self._past_breakpoint()
            for _ in range(count - 1):
                if stop.reason != "step":
                    break
                stop = self.system.step()
                if stop.reason == "break":  # met, not passed
                    break
            return stop

        return self._until_stopped(go)

    def cont(self) -> Hold:
        """Run to the next breakpoint, watched access, or the end.

        Raises:
            KeyboardInterrupt: never; Ctrl-C is a stop with reason `interrupted`.
        """
        if self._ended:
            return self._ended

        def go() -> Any:
            stop = self._past_breakpoint()
            return self.system.run() if stop.reason == "step" else stop

        return self._until_stopped(go)

    def _until_stopped(self, go: Callable[[], Any]) -> Hold:
        self._before = self.system.registers()
        self._seen = int(self.system.E.ring_head)
        self.system.E.stop_request = 0
        try:
            stop = go()
        except KeyboardInterrupt:
            stop = self.system.stop(0, "interrupted")
        return self._stopped(stop)

    def _past_breakpoint(self) -> Any:
        # A breakpoint is heeded before its instruction: the one at rip is not there for one step.
        here = [p for p in self._points if p.address == self.rip]
        if here:
            self._arm(without=self.rip)
        try:
            return self.system.step()
        finally:
            if here:
                self._arm()

    def _stopped(self, stop: Any) -> Hold:
        new = self._accesses(self._seen)
        registers = self.system.registers()
        changed = {
            name: value
            for name, value in registers.items()
            if value != self._before[name] and name != "rip"
        }
        hits: tuple[Access, ...] = ()
        text = str(attrs.evolve(stop, note=""))
        if stop.reason == "watch":
            hits = tuple(a for a in new[-1:] if self._asked_by(a))
            numbers = [p.number for a in hits for p in self._asked_by(a)]
            text = f"watchpoint {', '.join(map(str, numbers)) or '?'}"
        elif stop.reason == "break":
            numbers = [p.number for p in self._points if p.address == stop.rip]
            text = f"breakpoint {', '.join(map(str, numbers))}"
            for point in [p for p in self._points if p.once and p.address == stop.rip]:
                self._points.remove(point)
            self._arm()
        elif stop.reason == "step":
            text = "step"
        if stop.note != self._note:
            self._note = stop.note
            text += f"\nnote: {stop.note}"
        found = Hold(stop.reason, stop.rip, text, hits, tuple(new[-RECENT:]), changed)
        if found.ended:
            self._ended = found
        return found

    def _asked_by(self, access: Access) -> list[Point]:
        kind = {"rdmsr": 1, "wrmsr": 2}.get(access.kind, 0)
        return [p for p in self._points if p.msr == access.index and p.mode & kind]

    # --- points ---------------------------------------------------------------------------------

    def break_at(self, where: str | int, once: bool = False) -> Point:
        """Stop before the instruction at an address, symbol, symbol+N, line or file:line.

        Raises:
            ConfigError: no such place, or no room for more.
        """
        address = where if isinstance(where, int) else self.locate(where)
        if not 0 <= address < 1 << 64:
            raise ConfigError("break", f"{shown(address)} is not an address", "0 to 2**64 - 1")
        if sum(p.address >= 0 for p in self._points) >= N_BREAK:
            raise ConfigError("break", f"there are {N_BREAK} breakpoints already")
        self._number += 1
        point = Point(self._number, address, once, place=self.describe_place(address))
        self._points.append(point)
        self._arm()
        return point

    def watch_msr(self, name: str | int, *, read: bool = False, write: bool = True) -> Point:
        """Stop after the guest's accesses to an MSR.

        Args:
            name: the SDM's or the kernel's name, or the index.
            read, write: which accesses.

        Raises:
            UnknownNameError: no such MSR; ConfigError: neither reads nor writes, or no room.
        """
        if isinstance(name, str):
            value = whole(name)
            index = by_name(name) if value is None else value
        else:
            index = name
        if not 0 <= index < 1 << 32:
            raise ConfigError("watch", f"{shown(index)} is not what ECX can hold", "0 to 0xffffffff")
        mode = (1 if read else 0) | (2 if write else 0)
        if not mode:
            raise ConfigError("watch", "neither reads nor writes", "r w rw")
        if sum(p.msr >= 0 for p in self._points) >= N_WATCH:
            raise ConfigError("watch", f"there are {N_WATCH} watchpoints already")
        self._number += 1
        point = Point(self._number, msr=index, mode=mode)
        self._points.append(point)
        self._arm()
        return point

    def delete(self, number: int | None = None) -> None:
        """Forget one point, or all.

        Raises:
            ConfigError: no point has this number.
        """
        kept = [p for p in self._points if number is not None and p.number != number]
        if number is not None and len(kept) == len(self._points):
            numbers = " ".join(str(p.number) for p in self._points) or "none"
            raise ConfigError("delete", f"there is no point {shown(number)}", numbers)
        self._points = kept
        self._arm()

    def points(self) -> list[Point]:
        """All points, oldest first."""
        return list(self._points)

    def _arm(self, without: int | None = None) -> None:
        E = self.system.E
        addresses = sorted({p.address for p in self._points if p.address >= 0} - {without})
        for i, address in enumerate(addresses):
            E.breaks[i] = address
        E.n_break = len(addresses)
        watched = [p for p in self._points if p.msr >= 0]
        for i, point in enumerate(watched):
            E.watch_msr[i] = point.msr
            E.watch_mode[i] = point.mode
        E.n_watch = len(watched)
        self.system.forget_decoded()

    # --- looking --------------------------------------------------------------------------------

    @property
    def rip(self) -> int:
        """Address of the next instruction."""
        return self.system.rip

    def registers(self) -> dict[str, int]:
        """rax … r15, rip, rflags."""
        return self.system.registers()

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
        from vpmu_emu.traces.text import lines

        return list(lines(self.system.events()[-count:], place=self.program.place))

    def _accesses(self, since: int) -> list[Access]:
        events = self.system.events()
        fresh = int(self.system.E.ring_head) - since
        if fresh <= 0:
            return []
        found = []
        for event in events[-fresh:]:
            kind, rip = int(event["kind"]), int(event["rip"])
            a, b, c = int(event["a"]), int(event["b"]), int(event["c"])
            place = self.describe_place(rip)
            if kind in ACCESS_KINDS:
                old = c if kind == TR_GUEST_WRMSR else None
                found.append(Access(ACCESS_KINDS[kind], a, b, old, rip, place))
            elif kind == TR_MSR_FAULT:
                found.append(Access("wrmsr" if c & 1 else "rdmsr", a, b, None, rip, place, True))
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
        """The result so far, as `evaluate` needs it."""
        return self.system.result(self.system.stop(0, "running")).to_json()

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
        if not isinstance(value, int):
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


