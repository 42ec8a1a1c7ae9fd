"""A line in, text out: gdb's verbs over a Session; no terminal needed, so scripts are tests."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from vpmu_emu.asm.files import read_bytes, text_of
from vpmu_emu.debug import code as listing
from vpmu_emu.debug import pages, sections, why
from vpmu_emu.debug.backtrace import EXACT, INTERRUPTED, Frame, frame_of, frames, of_frame
from vpmu_emu.debug.screen import NARROWEST, Screen, Text, text
from vpmu_emu.debug.sections import Look, access_text, formatted, mark, place, value_text
from vpmu_emu.debug.session import CAUGHT
from vpmu_emu.debug.verbs import BY_NAME, GROUPS, TOPICS, VERBS, topic_of, verb_of
from vpmu_emu.errors import VpmuError
from vpmu_emu.numerals import shown, whole
from vpmu_emu.tables.exits import exit_number
from vpmu_emu.tables.msrs import NAMES

if TYPE_CHECKING:
    from vpmu_emu.debug.points import Hold, Point
    from vpmu_emu.debug.session import Session

UNITS = {"b": 1, "h": 2, "w": 4, "g": 8}
MOST_UNITS = 4096
MOST_LINES = 100_000  # of a script or of the commands of a point
DEEPEST = 10  # scripts that read scripts
SHOWN_AT_ONCE = 25  # stops that follow each other without a command before they are only counted
SECONDS = 1.0  # between two lines that say how many
PROMPT, PROMPT_OF_LIST = "(vpmu) ", ">"
_COMMENT = re.compile(r"^\s*#.*$|\s#\s.*$")  # `until #5` is no comment
_VERB = re.compile(r"([A-Za-z][A-Za-z-]*)(/\S*)?(?=\s|$|[^\w\s-])\s*(.*)", re.DOTALL)


class Quit(Exception):
    """The user has seen enough."""


def _screen(it: Screen | Callable[[str], object]) -> Screen:
    return it if isinstance(it, Screen) else Screen(it)


@attrs.define
class Repl:
    """One conversation about one session.

    Attributes:
        session: what it is about.
        screen: where everything goes; a function of a text will do.
        failures: lines that could not be obeyed.
        shown: sections of a stop.
        rate: stops that are shown in a row without a command between them.
        clock: seconds, for `rate` (a test has its own).
    """

    session: Session
    screen: Screen = attrs.field(converter=_screen)
    failures: int = 0
    shown: list[str] = attrs.field(factory=lambda: list(sections.USUAL))
    rate: int = SHOWN_AT_ONCE
    clock: Callable[[], float] = time.monotonic
    look: Look = attrs.field(init=False)
    _last: str = ""
    _next_address: int = 0
    _listed: int = 0
    _said: int = 0  # characters of the serial port that were shown
    _midline: bool = False
    _commands: dict[int, list[str]] = attrs.field(factory=dict)
    _list_of: tuple[int, list[str]] | None = None  # commands that are being typed
    _depth: int = 0
    _displays: int = 0
    _checkpoints: dict[int, str] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self.look = Look(self.session)

    @property
    def prompt(self) -> str:
        """What asks for the next line."""
        return PROMPT if self._list_of is None else PROMPT_OF_LIST

    def start(self) -> None:
        """Say where the program stands."""
        for note in self.session.program.notes:
            self.screen.line(text(f"note: {note}", "dim"))
        self._here()
        self.look.remember()

    def run(self, lines: Iterable[str]) -> int:
        """Obey `lines` until they end or one says quit; how many could not be obeyed."""
        for line in lines:
            try:
                self.obey(line)
            except Quit:
                break
        return self.failures

    def obey(self, line: str) -> None:
        """Do what one line says; errors become text, Ctrl-C ends what is being done and nothing else."""
        if self._list_of is not None:
            self._take(line.strip())
            return
        words = _COMMENT.sub("", line).strip()
        if not words and line.strip():
            return  # a comment repeats nothing
        words = words or self._last
        if not words:
            return
        try:
            self._dispatch(words)
        except VpmuError as error:
            self.failures += 1
            self._error(error)
        except KeyboardInterrupt:
            self._line_break()
            self.screen.line(text("interrupted", "bad"))
        except RecursionError:
            self.failures += 1
            self.screen.line(text("nested too deeply", "bad"))

    def _error(self, error: VpmuError) -> None:
        self._line_break()
        self.screen.line(text(_one_line(str(error)), "bad"))

    def _dispatch(self, words: str) -> None:
        match = _VERB.match(words)
        if match is None:
            raise VpmuError(f"cannot read {shown(words)}; try `help`")
        word, form, rest = match[1], (match[2] or "").lstrip("/"), match[3].strip()
        verb = verb_of(word)
        if rest and not verb.usage:
            raise VpmuError(f"{verb.name} takes nothing, and {shown(rest)} follows it")
        if form and "[/" not in verb.usage:
            raise VpmuError(f"{verb.name} takes no format (/{form}); print, x and display do")
        self._last = words if verb.repeats else ""
        method = verb.name.replace("-", "_")
        getattr(self, f"_do_{method}")(rest, form)

    # --- going on -------------------------------------------------------------------------------

    def _do_step(self, rest: str, form: str) -> None:
        self._go(lambda: self.session.step(self._count(rest)))

    def _do_next(self, rest: str, form: str) -> None:
        self._go(lambda: self.session.step_over(self._count(rest)))

    def _do_stepexit(self, rest: str, form: str) -> None:
        self._go(self.session.step_exit)

    def _do_finish(self, rest: str, form: str) -> None:
        self._go(self.session.finish)

    def _do_until(self, rest: str, form: str) -> None:
        where = rest
        if not rest:
            row = listing.decode(self.session.program, self.look.memory, self.session.rip)
            if row is None:
                raise VpmuError("until: there is no instruction here")
            where = f"{row.addr + len(row.code):#x}"
        self._go(lambda: self.session.until(where))

    def _do_advance(self, rest: str, form: str) -> None:
        if not rest:
            raise VpmuError("advance: to which place?")
        address = self.session.locate(rest)
        self._go(lambda: self.session.until(f"{address:#x}"))

    def _do_continue(self, rest: str, form: str) -> None:
        self._go(self.session.cont)

    def _do_reverse_step(self, rest: str, form: str) -> None:
        self._go(lambda: self.session.reverse_step(self._count(rest)), back=True)

    def _do_reverse_continue(self, rest: str, form: str) -> None:
        self._go(self.session.reverse_cont, back=True)

    def _do_reverse_to(self, rest: str, form: str) -> None:
        if not rest:
            raise VpmuError("reverse-to: where to?")
        self._go(lambda: self.session.reverse_to(rest), back=True)

    def _do_restart(self, rest: str, form: str) -> None:
        number = self._number(rest, "a checkpoint") if rest else None
        if number is None:
            self._go(self.session.restart, back=True)
        else:
            self._go(lambda: self.session.goto_checkpoint(number), back=True)

    def _do_checkpoint(self, rest: str, form: str) -> None:
        number = self.session.checkpoint()
        self._checkpoints[number] = pages.time_text(self.session.system)
        self.screen.line(f"checkpoint {number}: {self._checkpoints[number]}")

    def _count(self, words: str) -> int:
        if not words:
            return 1
        value = self.session.evaluate(words)
        if not isinstance(value, int) or not 0 < value < 1 << 40:
            raise VpmuError(f"{shown(words)} is not a number of instructions")
        return value

    def _go(self, move: Callable[[], Hold], back: bool = False) -> None:
        """Make a move, show where it ends, and do what the points there were told to do.

        A point whose commands go on may hold a million times a second: the first stops are shown, then how
        many there were.
        """
        ended = self.session.ended
        if ended is not None and not back:
            self.screen.line(f"it has ended: {ended.describe().splitlines()[0]}", hang=4)
            self.screen.line("    `restart`, `reverse-step` and `reverse-continue` go back")
            return
        burst = 0
        unseen: Counter[tuple[int, ...]] = Counter()
        said_at = self.clock()
        seen = True  # the stop before: what has changed has changed since it
        try:
            while True:
                stop = self._moved(move, back, seen)
                commands, goes_on = self._commands_of(stop)
                quiet = commands[:1] == ["silent"]
                seen = not (goes_on and burst >= self.rate)
                if not seen:
                    unseen[stop.why.points] += 1
                    if self.clock() - said_at >= SECONDS:
                        said_at = self.clock()
                        self._tell_unseen(unseen)
                else:
                    if not quiet:
                        self._show_stop(stop)
                    for line in commands[quiet:]:
                        self._dispatch(line)
                    burst += 1
                if not goes_on:
                    return
                move, back = self.session.cont, False
        finally:
            if unseen:
                self._tell_unseen(unseen)

    def _tell_unseen(self, unseen: Counter[tuple[int, ...]]) -> None:
        for points, count in unseen.items():
            which = ", ".join(map(str, points)) or "?"
            self.screen.line(text(f"point {which}: {count:,} more stops, not shown (set rate)", "dim"))
        unseen.clear()

    def _commands_of(self, stop: Hold) -> tuple[list[str], bool]:
        """What to do at a stop, and whether to go on then."""
        found = [line for number in stop.why.points for line in self._commands.get(number, ())]
        moves = [n for n, line in enumerate(found) if _word(line) in _GOES_ON]
        return (found[: moves[0]], not stop.ended) if moves else (found, False)

    def _moved(self, move: Callable[[], Hold], back: bool, remember: bool) -> Hold:
        system = self.session.system
        if remember:
            self.look.remember()
        keep = system.between
        if not back:
            system.between = lambda: self._between(keep)
        try:
            stop = move()
        finally:
            system.between = keep
        self.look.stop = stop
        self.look.frame = 0
        head = int(system.E.ring_head)
        if back or head < self.look.head:
            self.look.head = head
            self._said = len(system.serial)
        self._serial()
        self._line_break()
        return stop

    def _between(self, keep: Callable[[], None] | None) -> None:
        if keep is not None:
            keep()
        self._serial()

    def _serial(self) -> None:
        """What the program has written since, as it writes it."""
        said = self.session.system.serial
        if len(said) <= self._said:
            self._said = min(self._said, len(said))
            return
        new, self._said = said[self._said :], len(said)
        for row in new.splitlines(keepends=True):
            lead = Text() if self._midline else text("serial: ", "dim")
            painted = self.screen.painted(lead + text(row.rstrip("\r\n")), whole=True)
            self._midline = not row.endswith("\n")
            self.screen.write(painted + ("" if self._midline else "\n"))

    def _line_break(self) -> None:
        if self._midline:
            self.screen.write("\n")
            self._midline = False

    def _show_stop(self, stop: Hold) -> None:
        first, *notes = stop.describe().splitlines() or [stop.reason]
        if stop.reason == "until":
            first = "until"  # the place is shown below
        style = "bad" if stop.ended and stop.reason != "debug-exit" else "title"
        when = pages.time_text(self.session.system)
        self.screen.line(text(f"stopped: {first}", style), text(f"  {when}", "dim"))
        for access in stop.accesses:
            self.screen.line("  ", access_text(self.look, access))
        self._caught(stop)
        self.screen.lines(("  " + row for row in self._why(stop)), hang=6)
        self.screen.lines(text(note, "bad") for note in notes)
        for name in self.shown:
            sections.SECTIONS[name](self.look, self.screen)
        if "code" not in self.shown:
            self._here()

    def _caught(self, stop: Hold) -> None:
        """The event at which each catchpoint holds."""
        for point in self.session.points():
            if point.number in stop.why.points and point.kind == "catch":
                events = self.look.fresh(set(CAUGHT[point.caught][0]))
                sections.show_events(self.look, self.screen, events[-1:])

    def _why(self, stop: Hold) -> list[Text]:
        """How the program came here, in sentences."""
        it = stop.why
        found = []
        if it.vector is not None:
            name = pages.vector_name(it.vector) if it.kind != "nmi" else "NMI (2)"
            head = text(
                {"nmi": "NMI", "interrupt": "interrupt", "exception": "exception"}.get(it.kind, it.kind)
            )
            words = f" {name}" if it.kind != "nmi" else ""
            if it.error is not None:
                words += f", error code {it.error:#x}"
            if it.cr2 is not None:
                words += f", CR2 {it.cr2:#x}"
            line = text(str(head) + words, "changed")
            if it.interrupted is not None:
                line = line + " interrupted " + place(self.look, it.interrupted)
                where = sections.source_place(self.look, it.interrupted)
                line = line + (text(f" {where}", "dim") if where else "")
            found.append(line + f", CPL {it.cpl_before} -> {it.cpl_after}")
        if it.exit is not None:
            found.append(text("last exit ") + text(it.exit, "name"))
        return found

    def _here(self) -> None:
        rip = self.session.rip
        row = listing.decode(self.session.program, self.look.memory, rip)
        where = sections.source_place(self.look, rip)
        self.screen.line(
            text("=> ", "here"), place(self.look, rip), text(f" {where}" if where else "", "dim"),
            text(f": {row.text}" if row is not None else ": no memory", "here"),
        )  # fmt: skip

    # --- points ---------------------------------------------------------------------------------

    def _new_point(self, point: Point) -> None:
        self.screen.line(
            text(f"{_KIND_WORDS[point.kind]} {point.number}", "key"), f": {point.describe()}"
        )

    def _do_break(self, rest: str, form: str, once: bool = False) -> None:
        where, condition = _condition(rest)
        where = where or f"{self.session.rip:#x}"
        self._new_point(self.session.break_at(where, once=once, condition=condition))

    def _do_tbreak(self, rest: str, form: str) -> None:
        self._do_break(rest, form, once=True)

    def _do_watch(self, rest: str, form: str, mode: str = "w") -> None:
        head, condition = _condition(rest)
        words = head.split()
        if not words:
            raise VpmuError("watch: write `watch msr NAME [r|w|rw]` or `watch PLACE [SIZE] [r|w|rw]`")
        if words[0] == "msr":
            self._watch_msr(words[1:], condition, mode)
        else:
            self._watch_memory(words[words[0] == "mem" :], condition, mode)

    def _do_rwatch(self, rest: str, form: str) -> None:
        self._do_watch(rest, form, "r")

    def _do_awatch(self, rest: str, form: str) -> None:
        self._do_watch(rest, form, "rw")

    def _watch_msr(self, words: list[str], condition: str, mode: str) -> None:
        if not words:
            raise VpmuError("watch msr: which one? A name, a number, FIRST..LAST or all")
        name, more = words[0], words[1:]
        asked: dict[str, Any] = {"condition": condition}
        for word in more:
            if word in ("r", "w", "rw"):
                mode = word
            elif word in ("changes", "before", "after"):
                asked |= {"changes": True} if word == "changes" else {"stage": word}
            else:
                value, _, mask = word.partition("/")
                asked["value"] = self._number(value, "a value; or write r, w, rw, changes, before")
                asked |= {"mask": self._number(mask, "a mask")} if mask else {}
        self._new_point(self.session.watch_msr(name, read="r" in mode, write="w" in mode, **asked))

    def _watch_memory(self, words: list[str], condition: str, mode: str) -> None:
        size = 8
        while len(words) > 1 and (words[-1] in ("r", "w", "rw") or whole(words[-1]) is not None):
            word = words.pop()
            if word in ("r", "w", "rw"):
                mode = word
            else:
                size = self._number(word, "a size")
        where = " ".join(words)
        if not where:
            raise VpmuError("watch: which place?")
        if where.lower() in map(str.lower, NAMES) and where not in self.session.program.symbols:
            raise VpmuError(f"watch: {where} is an MSR; write `watch msr {where}`")
        free = where.removeprefix("$") not in self.session.program.symbols
        if place := re.fullmatch(r"mem(8|16|32|64)\s*\((.*)\)", where):  # the place, as gdb has it
            size, where = int(place[1]) // 8, place[2]
        elif free and re.fullmatch(rf"\$?({'|'.join(self.session.registers())}|pmc\d+|fixed\d+)", where):
            hint = f"`until {where} != VALUE`, or `watch mem64({where})` for what it points to"
            raise VpmuError(f"watch: {where} is in no memory; write {hint}")
        self._new_point(
            self.session.watch_memory(
                where, size, read="r" in mode, write="w" in mode, condition=condition
            )
        )

    def _do_catch(self, rest: str, form: str) -> None:
        head, condition = _condition(rest)
        if not head:
            raise VpmuError(f"catch: what? One of {' '.join(CAUGHT)}")
        kind, _, which = head.partition(" ")
        kind = _begun(kind, CAUGHT)
        if which:
            asked = _which(kind, which.strip())
            condition = f"{asked} and ({condition})" if condition else asked
        self._new_point(self.session.catch(kind, condition=condition))

    def _numbers(self, rest: str) -> list[int]:
        return [self._number(word, "the number of a point") for word in rest.replace(",", " ").split()]

    def _number(self, word: str, what: str) -> int:
        value: int | str | None = whole(word)
        if value is None and word:
            value = self.session.evaluate(word)
        if not isinstance(value, int) or not 0 <= value < 1 << 64:
            raise VpmuError(f"{shown(word)} is not {what}")
        return value

    def _do_delete(self, rest: str, form: str) -> None:
        if not rest:
            self.session.delete()
            self._commands.clear()
        for number in self._numbers(rest):
            self.session.delete(number)
            self._commands.pop(number, None)

    def _do_enable(self, rest: str, form: str) -> None:
        for number in self._numbers(rest) or [point.number for point in self.session.points()]:
            self.session.enable(number)

    def _do_disable(self, rest: str, form: str) -> None:
        for number in self._numbers(rest) or [point.number for point in self.session.points()]:
            self.session.disable(number)

    def _do_condition(self, rest: str, form: str) -> None:
        number, _, condition = rest.partition(" ")
        if not number:
            raise VpmuError("condition: of which point?")
        condition = condition.strip().removeprefix("if ").strip()
        self.session.set_condition(self._number(number, "the number of a point"), condition)

    def _do_ignore(self, rest: str, form: str) -> None:
        number, _, count = rest.partition(" ")
        if not count.strip():
            raise VpmuError("ignore: write `ignore N COUNT`")
        self.session.set_ignore(
            self._number(number, "the number of a point"), self._number(count.strip(), "a count")
        )

    def _do_commands(self, rest: str, form: str) -> None:
        points = self.session.points()
        if not points:
            raise VpmuError("commands: there is no point")
        number = self._number(rest, "the number of a point") if rest else points[-1].number
        if all(point.number != number for point in points):
            raise VpmuError(f"commands: there is no point {number}")
        self._list_of = (number, [])

    def _take(self, line: str) -> None:
        """One line of the commands of a point."""
        assert self._list_of is not None
        number, lines = self._list_of
        if line == "end":
            self._list_of = None
            try:
                for each in lines:
                    self._check_command(each)
            except VpmuError as error:
                self.failures += 1
                self._error(error)
                return
            self._commands[number] = lines
            if not lines:
                del self._commands[number]
        elif line and not line.startswith("#") and len(lines) < MOST_LINES:
            lines.append(line)

    def _check_command(self, line: str) -> None:
        if line == "silent":
            return
        verb = verb_of(_word(line))
        if verb.name == "commands" or (
            verb.group == "running" and verb.name not in ("continue", "checkpoint")
        ):
            raise VpmuError(f"commands: {verb.name} cannot be one; a last line `continue` goes on")

    # --- looking --------------------------------------------------------------------------------

    def _do_info(self, rest: str, form: str) -> None:
        word, _, more = rest.partition(" ")
        topic = topic_of(word)
        getattr(self, f"_info_{topic}")(more.strip())

    def _info_registers(self, more: str) -> None:
        values = self.session.registers()
        names = [_plain(word).lstrip("$").lower() for word in more.split()]
        for name in names:
            if name not in values:
                raise VpmuError(f"info registers: nothing is called {shown(name)}{_near(name, values)}")
            self.screen.line(mark(f"{name:<6}", False), f" {values[name]:#018x}  {values[name]}")
        if not names:
            sections.regs(self.look, self.screen)

    def _info_control(self, more: str) -> None:
        who = self.look.processor()
        tables = "" if who.cr3 else "no page tables: the firmware's identity map"
        rdpmc = "PCE: RDPMC at every CPL" if who.cr4 >> 8 & 1 else "no PCE: RDPMC at CPL 0 only"
        rows: list[list[Text | str]] = [
            ["cr0", f"{who.cr0:#x}", ""],
            ["cr2", f"{who.cr2:#x}", "address of the last page fault"],
            ["cr3", f"{who.cr3:#x}", tables],
            ["cr4", f"{who.cr4:#x}", rdpmc],
            ["efer", f"{who.efer:#x}", ""],
            ["cpl", f"{who.cpl}", ""],
        ]
        self.screen.columns(rows)
        names = zip(("es", "cs", "ss", "ds", "fs", "gs", "tr"), (*who.selectors, who.tr))
        self.screen.line("selectors ", " ".join(f"{name}={value:#x}" for name, value in names))

    def _info_pmu(self, more: str) -> None:
        sections.pmu(self.look, self.screen, everything=True)

    def _info_msr(self, more: str) -> None:
        found = self.session.msr_traffic(20)
        sections.show_accesses(self.look, self.screen, found)
        if not found:
            self.screen.line("no MSR access yet")

    def _info_lapic(self, more: str) -> None:
        pages.lapic_page(self.look, self.screen)

    def _info_lvt(self, more: str) -> None:
        sections.lvt(self.look, self.screen)

    def _info_idt(self, more: str) -> None:
        pages.idt_page(self.look, self.screen)

    def _info_gdt(self, more: str) -> None:
        pages.gdt_page(self.look, self.screen)

    def _info_vmcs(self, more: str) -> None:
        pages.vmcs_page(self.look, self.screen, more)

    def _info_filter(self, more: str) -> None:
        pages.filter_page(self.look, self.screen)

    def _info_perf(self, more: str) -> None:
        sections.perf(self.look, self.screen)

    def _info_exits(self, more: str) -> None:
        if self.look.system.has_host and not self.session.exits():
            self.screen.line("no VM-exit yet")
            return
        sections.exits(self.look, self.screen)

    def _info_events(self, more: str) -> None:
        self._do_events("all 20", "")

    def _info_break(self, more: str) -> None:
        points = self.session.points()
        rows: list[list[Text | str]] = []
        for point in points:
            rows.append([text(str(point.number), "key"), _KIND_WORDS[point.kind], point.describe()])
            rows += [
                ["", "", text(f"    {line}", "dim")] for line in self._commands.get(point.number, ())
            ]
        self.screen.columns(rows)
        if not points:
            self.screen.line("no breakpoints or watchpoints")

    def _info_display(self, more: str) -> None:
        for number, (form, expression) in self.look.displays.items():
            self.screen.line(f"{number}: {'/' + form + ' ' if form else ''}{expression}")
        if not self.look.displays:
            self.screen.line("nothing is displayed")

    def _info_line(self, more: str) -> None:
        self._here()

    def _info_threads(self, more: str) -> None:
        rows: list[list[Text | str]] = [
            [text("*" if it.current else " ", "here"), str(it.number), it.kind, text(it.name, "name"),
             place(self.look, it.rip), it.state]
            for it in self.session.threads()
        ]  # fmt: skip
        self.screen.columns(rows)

    def _info_checkpoints(self, more: str) -> None:
        for number, when in self._checkpoints.items():
            self.screen.line(f"{number}: {when}")
        if not self._checkpoints:
            self.screen.line("no checkpoint")

    def _info_symbols(self, more: str) -> None:
        program = self.session.program
        found = sorted(
            (value, name) for name, value in program.symbols.items()
            if more.lower() in name.lower() and (more or name not in program.equates)
        )  # fmt: skip
        for value, name in found[:MOST_UNITS]:
            self.screen.line(text(f"{value:#x}", "place"), f" {name}")
        if not found:
            self.screen.line(f"no symbol has {shown(more)} in its name")

    def _info_options(self, more: str) -> None:
        rows: list[list[Text | str]] = [
            ["sections", " ".join(self.shown), "of a stop: " + " ".join(sections.SECTIONS)],
            ["rate", str(self.rate), "stops in a row that are shown before they are counted"],
            ["width", str(self.screen.width), "columns"],
            ["colour", "on" if self.screen.colour else "off", "on or off"],
        ]
        self.screen.columns(rows)

    def _do_msr(self, rest: str, form: str) -> None:
        if not rest:
            raise VpmuError("msr: which one? Its name (the SDM's or the kernel's) or number")
        index = pages.parse_msr(rest)
        pages.msr_page(self.look, self.screen, index, self.session.read_msr(index))

    def _do_why(self, rest: str, form: str) -> None:
        words = rest.split()
        if not words:
            self._why_here()
            return
        subject, more = words[0].lower(), words[1:]
        if subject in why.ACCESSES or subject == "msr":
            if more not in ([], ["last"]):
                raise VpmuError(
                    f"why {subject}: {shown(' '.join(more))} is more than it takes; `last` may follow"
                )
            why.why_access(self.look, self.screen, "wrmsr" if subject == "msr" else subject, bool(more))
        elif subject == "pmi":
            why.why_pmi(self.look, self.screen, more[0] if more else "")
        elif re.fullmatch(r"(pmc|fixed)[0-9]+", subject):
            why.why_counter(self.look, self.screen, subject)
        else:
            raise VpmuError(f"why {shown(subject)}? I know wrmsr, rdmsr, rdpmc, pmi, pmcN and fixedN")

    def _why_here(self) -> None:
        stop = self.look.stop
        if stop is None:
            self.screen.line("the program has not begun: this is its first instruction")
            return
        for row in stop.describe().splitlines():
            self.screen.line(row)
        self.screen.lines(self._why(stop))
        for access in stop.accesses:
            self.screen.line("  ", access_text(self.look, access))

    def _do_print(self, rest: str, form: str) -> None:
        if not rest:
            raise VpmuError("p: what?")
        self.screen.line(value_text(self.session.evaluate(self._framed(rest)), form))

    def _do_x(self, rest: str, form: str) -> None:
        match = re.fullmatch(r"([0-9]*)([xduoct si]?)([bhwg]?)", form) or re.fullmatch(
            r"([0-9]*)([bhwg]?)([xduoct si]?)", form
        )
        if match is None:
            raise VpmuError(
                f"x/{shown(form)}: a count, a format of x d u o t c s i and a unit of b h w g"
            )
        count = int(match[1][:9] or 1)
        if count > MOST_UNITS:
            raise VpmuError(f"x/{shown(form)}: at most {MOST_UNITS} units at a time")
        letters = match[2] + match[3]
        unit = next((c for c in letters if c in UNITS), "g")
        style = next((c for c in letters if c not in UNITS), "x")
        address = self._next_address if not rest else self._address(rest)
        if style == "i":
            address = self._code(address, count)
        elif style == "s":
            for _ in range(count):
                data = self._string(address)
                self.screen.line(place(self.look, address), f": {data.decode('latin-1')!r}")
                address += len(data) + 1
        else:
            size = 1 if style == "c" else UNITS[unit]
            per_line = max(1, (16 if self.screen.width < 110 else 32) // size)
            data = self.look.exact_memory(address, count * size)
            values = [int.from_bytes(data[n : n + size], "little") for n in range(0, len(data), size)]
            for n in range(0, count, per_line):
                row = " ".join(formatted(v, style, size) for v in values[n : n + per_line])
                self.screen.line(place(self.look, address + n * size), f": {row}", hang=8)
            address += count * size
        self._next_address = address
        self._last = f"x/{form}"

    def _string(self, address: int) -> bytes:
        data = self.look.exact_memory(address, 1) + self.look.memory(address + 1, 199)
        return data.partition(b"\0")[0]

    def _address(self, words: str) -> int:
        value = self.session.evaluate(self._framed(words), place=True)
        if not isinstance(value, int):
            raise VpmuError(f"{shown(words)} is not an address")
        return value & (1 << 64) - 1

    def _code(self, address: int, count: int) -> int:
        self.look.exact_memory(address, 1)
        rows = list(islice(listing.following(self.session.program, self.look.memory, address), count))
        sections.show_code(self.look, self.screen, rows)
        return rows[-1].addr + len(rows[-1].code)

    def _do_disassemble(self, rest: str, form: str) -> None:
        first, comma, last = rest.partition(",")
        program = self.session.program
        address = self.session.locate(first) if first.strip() else frame_of(self.look).call
        if comma:
            last = last.strip()
            end = (
                address + self._number(last[1:], "a size")
                if last.startswith("+")
                else self.session.locate(last)
            )
            if not address < end <= address + 16 * MOST_UNITS:
                raise VpmuError(f"disassemble: {end:#x} is not behind {address:#x}, or too far")
        else:
            labels = sorted({v for n, v in program.symbols.items() if n not in program.equates})
            address = (
                max((v for v in labels if v <= address), default=address)
                if program.holds(address)
                else address
            )
            end = min((v for v in labels if v > address), default=address + 64)
            end = min(end, address + 1024)
        self.look.exact_memory(address, 1)
        rows = []
        for row in listing.following(program, self.look.memory, address):
            if row.addr >= end:
                break
            rows.append(row)
        sections.show_code(self.look, self.screen, rows)

    def _do_list(self, rest: str, form: str) -> None:
        address = self.session.locate(rest) if rest else frame_of(self.look).call
        program = self.session.program
        line = program.line_at(address)
        if line is None:
            raise VpmuError(f"list: no source at {address:#x}")
        source = program.source.get(line.file)
        if source is None:
            raise VpmuError(f"list: {line.file}:{line.line}: the source file is not here")
        if rest or self._listed <= 0:
            first = max(1, line.line - 5)
        else:
            first = self._listed
        if first > len(source):
            raise VpmuError(f"list: {line.file} ends at line {len(source)}")
        for n in range(first, min(len(source), first + 10) + 1):
            here = n == line.line
            row = f"{n:5}  {source[n - 1].expandtabs(8)}"
            self.screen.line(
                text("=>" if here else "  ", "here"), text(row, "here" if here else ""), hang=9
            )
        self._last = "list"
        self._listed = min(len(source), first + 10) + 1

    def _do_backtrace(self, rest: str, form: str) -> None:
        most = self._count(rest) if rest else 20
        found = list(islice(frames(self.look), most + 1))
        for n, frame in enumerate(found[:most]):
            self._show_frame(n, frame)
        if len(found) > most:
            self.screen.line(text("(more frames: bt N)", "dim"))

    def _show_frame(self, n: int, frame: Frame) -> None:
        where = sections.source_place(self.look, frame.call)
        how = f"  ({frame.how})" if frame.how not in (EXACT,) else ""
        style = "changed" if frame.how == INTERRUPTED else "dim"
        self.screen.line(
            text(f"#{n}  ", "key"), place(self.look, frame.rip), f" {where}", text(how, style)
        )

    def _do_frame(self, rest: str, form: str) -> None:
        if rest:
            self._choose(self._number(rest, "the number of a frame"))
        frame = frame_of(self.look)
        self._show_frame(self.look.frame, frame)
        line = self.session.program.line_at(frame.call)
        if line is not None and (source := listing.source_line(self.session.program, line)):
            self.screen.line(text(f"{line.line:>6} {source}", "dim"), hang=7)

    def _do_up(self, rest: str, form: str) -> None:
        last = sum(1 for _ in frames(self.look)) - 1
        if self.look.frame >= last:
            raise VpmuError(f"up: #{last} is the outermost frame that can be found")
        self.look.frame = min(self.look.frame + self._count(rest), last)
        self._do_frame("", "")

    def _do_down(self, rest: str, form: str) -> None:
        if not self.look.frame:
            raise VpmuError("down: #0 is the innermost frame")
        self.look.frame = max(self.look.frame - self._count(rest), 0)
        self._do_frame("", "")

    def _choose(self, number: int) -> None:
        found = list(islice(frames(self.look), number + 1))
        if len(found) <= number:
            raise VpmuError(f"frame: there is no frame {number}; the outermost is #{len(found) - 1}")
        self.look.frame = number
        self._listed = 0

    def _framed(self, words: str) -> str:
        return of_frame(self.look, _plain(words))

    def _do_display(self, rest: str, form: str) -> None:
        if not rest:
            sections.watch(self.look, self.screen)
            return
        rest = _plain(rest)
        words = sections.shown_value(self.look, self.session.evaluate(rest), form)  # or it cannot be
        self._displays += 1
        self.look.displays[self._displays] = (form, rest)
        self.screen.line(f"{self._displays}: {rest} = {words}")

    def _do_undisplay(self, rest: str, form: str) -> None:
        if not rest:
            self.look.displays.clear()
        for number in self._numbers(rest):
            if self.look.displays.pop(number, None) is None:
                raise VpmuError(f"undisplay: there is no display {number}")

    def _do_context(self, rest: str, form: str) -> None:
        for name in rest.split() or self.shown:
            sections.SECTIONS[_begun(name, sections.SECTIONS)](self.look, self.screen)

    def _do_events(self, rest: str, form: str) -> None:
        words = rest.split()
        everything = "all" in words
        counting = "count" in words or "counts" in words
        numbers = [whole(word) for word in words if whole(word) is not None]
        kinds = [w for w in words if w not in ("all", "count", "counts") and whole(w) is None]
        wanted = set(sections.kinds_named(kinds)) if kinds else None
        found = sections.events_since(self.session.system, 0 if everything else self.look.head, wanted)
        if counting:
            counts = Counter(sections.KIND_NAMES.get(int(kind), str(kind)) for kind in found["kind"])
            rows: list[list[Text | str]] = [
                [f"{n:>10,}", text(name, "name")] for name, n in counts.most_common()
            ]
            self.screen.columns(rows)
        else:
            count = numbers[-1] if numbers else len(found) if kinds or everything else 40
            assert count is not None
            more = max(0, len(found) - max(0, count))
            if more:
                self.screen.line(text(f"({more:,} earlier ones)", "dim"))
            sections.show_events(self.look, self.screen, found[max(0, more) :])
        if not len(found):
            self.screen.line("no such event" + ("" if everything else " since the last stop"))
        lost = self.session.system.lost()["trace"]
        if lost and everything:
            self.screen.line(
                text(f"({lost:,} events before these are lost: the ring keeps the last ones)", "dim")
            )

    def _do_serial(self, rest: str, form: str) -> None:
        said = self.session.system.serial
        for row in said.splitlines():
            self.screen.line(row)
        if not said:
            self.screen.line("nothing yet")

    def _do_when(self, rest: str, form: str) -> None:
        self.screen.line(pages.time_text(self.session.system))

    def _do_thread(self, rest: str, form: str) -> None:
        if not rest:
            self._info_threads("")
            return
        self.session.select(self._number(rest, "the number of a thread"))
        self.look.before.clear()
        self._here()

    # --- changing -------------------------------------------------------------------------------

    def _do_set(self, rest: str, form: str) -> None:
        words = rest.removeprefix("var ").replace("=", " = ", 1).replace("=  =", "==").split()
        if len(words) < 2:
            raise VpmuError(
                "set: write `set REGISTER VALUE`, `set msr NAME VALUE` or `set OPTION VALUE`"
            )
        head = words[0]
        plain = [word for word in words if word != "="]
        name = _plain(head).removeprefix("$").lower()
        if name == "msr" and len(plain) >= 3:
            index = pages.parse_msr(plain[1])
            self.session.write_msr(index, self._value(" ".join(plain[2:])))
            pages.msr_page(self.look, self.screen, index, self.session.read_msr(index))
        elif self.look.frame and name in ("rip", "rsp", "rbp"):
            raise VpmuError(f"set: {name} of frame {self.look.frame} is in no register; `frame 0` first")
        elif name in self.session.registers():
            self.session.write_register(name, self._value(" ".join(plain[1:])))
            self._changed_register(name)
        elif memory := re.fullmatch(
            r"(?:\{(\d+)\}|mem(8|16|32|64)?\b)\s*\(?(.*?)\)?\s*=?\s*([^=]+)", " ".join(words)
        ):
            self._set_memory(memory, plain)
        elif name in OPTIONS:
            getattr(self, f"_set_{OPTIONS[name]}")(plain[1:])
        else:
            known = [*self.session.registers(), "msr", "mem", *OPTIONS]
            raise VpmuError(f"set: nothing is called {shown(head)}{_near(name, known)}")

    def _value(self, words: str) -> int:
        value = self.session.evaluate(_plain(words))
        if not isinstance(value, int) or not -(1 << 63) <= value < 1 << 64:
            raise VpmuError(f"set: {shown(words)} is not a value of 64 bits")
        return value & (1 << 64) - 1

    def _changed_register(self, name: str) -> None:
        self.screen.line(mark(name, True), f" {self.session.registers()[name]:#x}")

    def _set_memory(self, match: re.Match[str], plain: list[str]) -> None:
        size, where, value = 8, match[3].strip(), match[4].strip()
        if match[1]:
            size = int(match[1][:3])
        elif match[2]:
            size = int(match[2]) // 8
        if plain[0] == "mem" and len(plain) in (3, 4):
            where, value = plain[1], plain[2]
            size = self._number(plain[3], "a size") if len(plain) == 4 else size
        if size not in (1, 2, 4, 8):
            raise VpmuError(f"set: {size} is not a size; 1, 2, 4 or 8 bytes")
        address = self._address(where)
        number = self._value(value) & (1 << 8 * size) - 1
        self.session.write_memory(address, number.to_bytes(size, "little"))
        self.screen.line(place(self.look, address), f": {formatted(number, 'x', size)}")

    def _set_sections(self, words: list[str]) -> None:
        self.shown = [_begun(word, sections.SECTIONS) for word in words if word != "none"]

    def _set_rate(self, words: list[str]) -> None:
        self.rate = self._number(words[0], "a number of stops")

    def _set_width(self, words: list[str]) -> None:
        width = self._number(words[0], "a width")
        if not NARROWEST <= width <= 1000:
            raise VpmuError(f"set width: {NARROWEST} to 1000")
        self.screen.width = width

    def _set_colour(self, words: list[str]) -> None:
        if words[0] not in ("on", "off"):
            raise VpmuError(f"set colour: {shown(words[0])} is neither on nor off")
        self.screen.colour = words[0] == "on"

    # --- the session ----------------------------------------------------------------------------

    def _do_source(self, rest: str, form: str) -> None:
        if not rest:
            raise VpmuError("source: which file?")
        if self._depth >= DEEPEST:
            raise VpmuError(f"source: {rest}: scripts within scripts, {DEEPEST} deep")
        lines = text_of(read_bytes(path_of(rest), 1 << 20), rest).splitlines()
        self._depth += 1
        try:
            for number, line in enumerate(lines[:MOST_LINES], 1):
                failures = self.failures
                self.obey(line)
                if self.failures > failures:
                    self.screen.line(text(f"{rest}:{number}: {line.strip()}", "dim"))
        finally:
            self._depth -= 1
        self._last = ""

    def _do_echo(self, rest: str, form: str) -> None:
        self.screen.line(rest)

    def _do_help(self, rest: str, form: str) -> None:
        word, _, more = rest.partition(" ")
        if word in ("info", "i") and more:
            topic = topic_of(more.strip())
            self.screen.line(text(f"info {topic}", "key"), f": {TOPICS[topic]}")
        elif word in ("sections", "section"):
            self._pairs((name, _first(it.__doc__)) for name, it in sections.SECTIONS.items())
        elif not rest:
            for group, title in GROUPS.items():
                self.screen.line(text(title, "title"))
                self._pairs(
                    (", ".join((it.name, *it.short[:1])), it.does) for it in VERBS if it.group == group
                )
            repeats = ", ".join(verb.name for verb in VERBS if verb.repeats)
            self.screen.line(f"`help COMMAND` says more; an empty line repeats {repeats}")
        elif word in BY_NAME or not any(topic.startswith(word) for topic in TOPICS):
            verb = verb_of(word)
            short = f" (or {', '.join(verb.short)})" if verb.short else ""
            self.screen.line(text(f"{verb.name} {verb.usage}".strip(), "key"), short)
            self.screen.line(f"  {verb.does}", hang=2)
            if verb.more:
                self.screen.line(f"  {verb.more}", hang=2)
            if verb.name == "info":
                self._pairs(TOPICS.items())
        else:
            topic = topic_of(word)
            self.screen.line(text(f"info {topic}", "key"), f": {TOPICS[topic]}")

    def _pairs(self, pairs: Iterable[tuple[str, str]]) -> None:
        self.screen.columns([[text(name, "key"), does] for name, does in pairs], indent=2)

    def _do_quit(self, rest: str, form: str) -> None:
        raise Quit


_ANY_PROCESSOR = {"pc": "rip", "sp": "rsp", "fp": "rbp"}
_GOES_ON = {name for name, verb in BY_NAME.items() if verb.name == "continue"}
_KIND_WORDS = {
    "break": "breakpoint",
    "msr": "watchpoint",
    "memory": "watchpoint",
    "catch": "catchpoint",
}
OPTIONS = {
    "sections": "sections",
    "rate": "rate",
    "width": "width",
    "colour": "colour",
    "color": "colour",
}


def _plain(words: str) -> str:
    """An expression with the names that gdb has for registers of any processor replaced by those of x86."""
    return re.sub(r"\$(pc|sp|fp)\b", lambda match: _ANY_PROCESSOR[match[1]], words)


def _word(line: str) -> str:
    match = _VERB.match(line.strip())
    return match[1] if match else line.strip()


def _condition(rest: str) -> tuple[str, str]:
    """What stands before `if`, and what behind it."""
    head, found, condition = f" {rest} ".partition(" if ")
    if found and not condition.strip():
        raise VpmuError("if what? A condition has to follow")
    return head.strip(), condition.strip()


def _begun(word: str, names: Iterable[str]) -> str:
    """The one of `names` that `word` is, or that alone begins with it.

    Raises:
        VpmuError: none, or several.
    """
    names = list(names)
    if word in names:
        return word
    begun = [name for name in names if word and name.startswith(word)]
    if len(begun) == 1:
        return begun[0]
    raise VpmuError(f"{shown(word)} is none of {' '.join(names)}")


def _one_line(message: str) -> str:
    """An error of several lines, as those of expressions with a caret, in one."""
    first, *rest = message.splitlines() or [""]
    first = re.sub(r"^(expression|condition):1: ", "", first)
    if "cannot read this" in first and rest:
        first += f": {rest[0].strip()}"
    hints = [row.partition("hint: ")[2] for row in rest if row.startswith("  hint: ")]
    return "; ".join([first, *hints])


def _which(kind: str, which: str) -> str:
    """The condition for one of the things of a kind that can be caught.

    Raises:
        VpmuError: the kind has none.
    """
    if kind == "exit":
        return f"reason == {exit_number(which)}"
    if kind in ("exception", "interrupt"):
        return f"vector == {which}"
    if kind == "perf-state":
        return f"after == {which.upper()}"
    counter = re.fullmatch(r"(pmc|fixed)([0-9])", which)
    if kind == "overflow" and counter:
        return f"counter == {int(counter[2]) + (32 if counter[1] == 'fixed' else 0)}"
    raise VpmuError(f"catch {kind}: {shown(which)} is more than it takes; `if CONDITION` may follow")


def _near(word: str, names: Iterable[str]) -> str:
    from vpmu_emu.options import did_you_mean

    return did_you_mean(word, list(names))


def _first(words: str | None) -> str:
    return (words or "").splitlines()[0]


def path_of(name: str) -> Path:
    """A path that may begin with ~; where nobody has a home that is a name as any other."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)
