"""A line in, text out: gdb's verbs over a Session; no terminal needed, so scripts are tests."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import attrs

from vpmu_emu.errors import VpmuError
from vpmu_emu.numerals import shown

if TYPE_CHECKING:
    from vpmu_emu.debug.points import Hold
    from vpmu_emu.debug.session import Session

HELP = """\
s, si [N]            step N instructions (default 1)
c                    continue to the next breakpoint, watched access or the end
b LOC                break at an address, symbol, symbol+N, line or file:line; tb LOC once
watch msr NAME [r|w|rw]   stop after reads, writes (default) or both of an MSR
delete [N]           delete breakpoint or watchpoint N, or all
info regs|pmu|msr|exits|events|break|line
x/NFU ADDR           memory: N units, format x d u c s i, unit b h w g
p[/x|/d|/t] EXPR     registers, symbols, pmcN, fixedN, mem64(…), arithmetic
l [LOC]              source around a place
q                    quit; an empty line repeats s, c, x and l"""

VERBS = {
    "s": "step", "si": "step", "stepi": "step", "step": "step",
    "c": "continue", "cont": "continue", "continue": "continue",
    "b": "break", "br": "break", "break": "break", "tb": "tbreak", "tbreak": "tbreak",
    "watch": "watch", "d": "delete", "delete": "delete",
    "i": "info", "info": "info", "x": "examine", "p": "print", "print": "print",
    "l": "list", "list": "list", "q": "quit", "quit": "quit", "exit": "quit",
    "h": "help", "help": "help",
}  # fmt: skip
REPEATABLE = {"step", "continue", "examine", "list"}
MOST_UNITS = 4096
UNITS = {"b": 1, "h": 2, "w": 4, "g": 8}
TOPICS = ("regs", "pmu", "msr", "exits", "events", "break", "line")


class Quit(Exception):
    """The user has seen enough."""


@attrs.define
class Repl:
    """One conversation about one session."""

    session: Session
    write: Callable[[str], object]
    failures: int = 0
    _last: str = ""
    _next_address: int = 0

    def start(self) -> None:
        """Say where the program stands."""
        self._where()

    def run(self, lines: Iterable[str]) -> int:
        """Obey `lines` until they end or one says quit; how many could not be obeyed."""
        for line in lines:
            try:
                self.obey(line)
            except Quit:
                break
        return self.failures

    def obey(self, line: str) -> None:
        """Do what one line says; errors become text."""
        text = line.split("#")[0].strip() if not line.lstrip().startswith("p") else line.strip()
        if not text:
            text = self._last
        if not text:
            return
        try:
            self._dispatch(text)
        except VpmuError as error:
            self.failures += 1
            self.write(f"{error}\n")

    def _dispatch(self, text: str) -> None:
        match = re.match(r"([A-Za-z]+)(/\S*)?\s*(.*)", text, re.DOTALL)
        if match is None:
            raise VpmuError(f"cannot read {shown(text)}; try `help`")
        word, form, rest = match[1], (match[2] or "").lstrip("/"), match[3].strip()
        verb = VERBS.get(word)
        if verb is None:
            near = difflib.get_close_matches(word, VERBS, 1)
            hint = f"did you mean {near[0]}?" if near else "try `help`"
            raise VpmuError(f"unknown command {shown(word)}; {hint}")
        self._last = text if verb in REPEATABLE else ""
        getattr(self, f"_do_{verb}")(rest, form)

    # --- moving ---------------------------------------------------------------------------------

    def _do_step(self, rest: str, form: str) -> None:
        self._show_stop(self.session.step(self._count(rest) if rest else 1))

    def _do_continue(self, rest: str, form: str) -> None:
        self._show_stop(self.session.cont())

    def _count(self, text: str) -> int:
        value = self.session.evaluate(text)
        if not isinstance(value, int) or not 0 < value < 1 << 40:
            raise VpmuError(f"{shown(text)} is not a number of instructions")
        return value

    def _show_stop(self, stop: Hold) -> None:
        self.write(f"stopped: {stop.describe()}\n")
        for access in stop.accesses:
            self.write(f"  {access.describe()}\n")
        self._where()
        changed = stop.changed_registers
        if changed:
            self.write("  regs  " + " ".join(f"{n}={v:#x}" for n, v in changed.items()) + "\n")
        pmu = self.session.pmu()
        shown = [f"{n}={v:#x}" for n, v in pmu.items() if v]
        self.write("  pmu   " + (" ".join(shown) or "all zero") + "\n")
        for access in stop.recent:
            self.write(f"  msr   {access.describe()}\n")

    def _where(self) -> None:
        self.write(f"=> {self.session.describe_place(self.session.rip)}\n")

    # --- stopping -------------------------------------------------------------------------------

    def _do_break(self, rest: str, form: str) -> None:
        point = self.session.break_at(rest or f"{self.session.rip:#x}")
        self.write(f"breakpoint {point.number} at {self.session.describe_place(point.address)}\n")

    def _do_tbreak(self, rest: str, form: str) -> None:
        point = self.session.break_at(rest or f"{self.session.rip:#x}", once=True)
        self.write(f"breakpoint {point.number} at {self.session.describe_place(point.address)}\n")

    def _do_watch(self, rest: str, form: str) -> None:
        words = rest.split()
        if words[:1] != ["msr"] or len(words) not in (2, 3):
            raise VpmuError("write `watch msr NAME [r|w|rw]`")
        mode = words[2] if len(words) == 3 else "w"
        if mode not in ("r", "w", "rw"):
            raise VpmuError(f"watch: {shown(mode)} is not r, w or rw")
        point = self.session.watch_msr(words[1], read="r" in mode, write="w" in mode)
        self.write(f"watchpoint {point.number}: {point.describe()}\n")

    def _do_delete(self, rest: str, form: str) -> None:
        self.session.delete(self._count(rest) if rest else None)

    # --- looking --------------------------------------------------------------------------------

    def _do_info(self, rest: str, form: str) -> None:
        topic = next((t for t in TOPICS if rest and t.startswith(rest)), None)
        if rest in ("registers", "r"):
            topic = "regs"
        if topic is None:
            near = difflib.get_close_matches(rest, TOPICS, 1)
            hint = f"; did you mean {near[0]}?" if near else f" (allowed: {', '.join(TOPICS)})"
            raise VpmuError(f"info: unknown topic {shown(rest)}{hint}")
        getattr(self, f"_info_{topic}")()

    def _info_regs(self) -> None:
        registers = self.session.registers()
        for name, value in registers.items():
            self.write(f"{name:8}{value:#018x}  {value}\n")

    def _info_pmu(self) -> None:
        for name, value in self.session.pmu().items():
            words = self.session.pmu_words(name, value)
            self.write(f"{name:26}{value:#x}{'  ' + words if words else ''}\n")

    def _info_msr(self) -> None:
        accesses = self.session.msr_traffic(20)
        for access in accesses:
            self.write(access.describe() + "\n")
        if not accesses:
            self.write("no MSR access yet\n")

    def _info_exits(self) -> None:
        exits = self.session.exits()
        for name, count in sorted(exits.items(), key=lambda item: -item[1]):
            self.write(f"{name:28}{count}\n")
        if not exits:
            self.write("no VM-exit yet\n")

    def _info_events(self) -> None:
        for text in self.session.recent_events(20):
            self.write(text + "\n")

    def _info_break(self) -> None:
        points = self.session.points()
        for point in points:
            self.write(f"{point.number}  {point.describe()}\n")
        if not points:
            self.write("no breakpoints or watchpoints\n")

    def _info_line(self) -> None:
        self._where()

    def _do_examine(self, rest: str, form: str) -> None:
        match = re.fullmatch(r"([0-9]*)([xduct si]?)([bhwg]?)", form) or re.fullmatch(
            r"([0-9]*)([bhwg]?)([xduct si]?)", form
        )
        if match is None:
            raise VpmuError(f"x/{shown(form)}: a count, a format of x d u t c s i and a unit of b h w g")
        count = int(match[1][:9] or 1)
        if count > MOST_UNITS:
            raise VpmuError(f"x/{shown(form)}: at most {MOST_UNITS} units at a time")
        letters = match[2] + match[3]
        unit = next((c for c in letters if c in UNITS), "g")
        style = next((c for c in letters if c not in UNITS), "x")
        address = self._next_address if not rest else self._address(rest)
        if style == "i":
            for line in self.session.instructions(address, count):
                self.write(line + "\n")
            return
        if style == "s":
            for _ in range(count):
                data = self._string(address)
                self.write(f"{address:#x}: {data.decode('latin-1')!r}\n")
                address += len(data) + 1
        else:
            size = 1 if style == "c" else UNITS[unit]
            per_line = max(1, 16 // size)
            values = [
                int.from_bytes(self.session.read(address + i * size, size), "little")
                for i in range(count)
            ]
            for i in range(0, count, per_line):
                values_text = " ".join(_format(v, style, size) for v in values[i : i + per_line])
                self.write(f"{address + i * size:#x}: {values_text}\n")
            address += count * size
        self._next_address = address
        self._last = f"x/{form}"

    def _string(self, address: int) -> bytes:
        found = bytearray()
        while len(found) < 200 and (byte := self.session.read(address + len(found), 1)) != b"\0":
            found += byte
        return bytes(found)

    def _address(self, text: str) -> int:
        value = self.session.evaluate(text, place=True)
        if not isinstance(value, int):
            raise VpmuError(f"{shown(text)} is not an address")
        return value

    def _do_print(self, rest: str, form: str) -> None:
        if not rest:
            raise VpmuError("p: what?")
        value = self.session.evaluate(rest)
        if isinstance(value, int):
            self.write(f"{_format(value, form, 8) if form else f'{value} ({value:#x})'}\n")
        else:
            self.write(f"{value!r}\n")

    def _do_list(self, rest: str, form: str) -> None:
        address = self.session.locate(rest) if rest else self.session.rip
        for line in self.session.source_around(address):
            self.write(line + "\n")
        self._last = "" if rest else self._last

    def _do_help(self, rest: str, form: str) -> None:
        self.write(HELP + "\n")

    def _do_quit(self, rest: str, form: str) -> None:
        raise Quit


def _format(value: int, style: str, size: int) -> str:
    bits = 8 * size
    value &= (1 << bits) - 1
    if style in ("", "x"):
        return f"{value:#0{2 * size + 2}x}"
    if style == "d":
        return str(value - (1 << bits) if value >> bits - 1 & 1 else value)
    if style == "t":
        return f"{value:#b}"
    if style == "c":
        return repr(chr(value & 0xFF))
    if style == "u":
        return str(value)
    raise VpmuError(f"unknown format {shown(style)}; x d u t c")
