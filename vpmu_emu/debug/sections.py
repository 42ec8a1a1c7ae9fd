"""What a stop shows, part by part: each looks, says what has changed, and changes nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from vpmu_emu.debug import code as listing
from vpmu_emu.debug.counters import Counter, counters, pmu_version
from vpmu_emu.debug.screen import Screen, Text, join, text
from vpmu_emu.errors import ConfigError, VpmuError
from vpmu_emu.linux.trace_kinds import LINUX_KINDS
from vpmu_emu.machine.clock import tsc_value
from vpmu_emu.machine.ring import (
    MACHINE_KINDS,
    TR_GUEST_RDMSR,
    TR_GUEST_RDPMC,
    TR_GUEST_WRMSR,
    TR_GUEST_WRMSR_BLIND,
    TR_MSR_FAULT,
    TR_VM_EXIT,
)
from vpmu_emu.numerals import shown
from vpmu_emu.tables.exits import exit_name
from vpmu_emu.tables.msrs import by_name, msr_name, value_words
from vpmu_emu.traces.text import decode
from vpmu_emu.views.guest import Processor, processor
from vpmu_emu.views.registers import lapic_mode, lapic_off

if TYPE_CHECKING:
    from vpmu_emu.debug.points import Access, Hold
    from vpmu_emu.debug.session import Session

RFLAGS = ((0, "CF"), (2, "PF"), (4, "AF"), (6, "ZF"), (7, "SF"), (8, "TF"), (9, "IF"), (10, "DF"),
          (11, "OF"), (16, "RF"), (18, "AC"))  # fmt: skip
LVT_NAMES = ("cmci", "timer", "thermal", "pmi", "lint0", "lint1", "error")
ACCESS_KINDS = {TR_GUEST_RDMSR, TR_GUEST_WRMSR, TR_GUEST_WRMSR_BLIND, TR_GUEST_RDPMC, TR_MSR_FAULT}
KIND_NAMES = {**MACHINE_KINDS, **LINUX_KINDS}
SHOWN = 10  # rows of a part that may have thousands
MARK = "*"  # before what has changed, coloured or not


@attrs.define
class Look:
    """What is looked at, and what was there at the stop before.

    Attributes:
        session: the session.
        stop: why it holds, None before it ran.
        head: events of the trace at the stop before.
        before: by part, the values at the stop before.
        displays: number and expression of what is displayed, with its format.
        frame: which one is looked at, counted from the innermost; every move goes back to that.
    """

    session: Session
    stop: Hold | None = None
    head: int = 0
    before: dict[str, dict[str, int]] = attrs.field(factory=dict)
    displays: dict[int, tuple[str, str]] = attrs.field(factory=dict)
    frame: int = 0

    @property
    def system(self) -> Any:
        """The system of the session, which a restart makes anew."""
        return self.session.system

    def processor(self) -> Processor:
        """The processor of the program."""
        system = self.system
        thread = next((it for it in self.session.threads() if it.current and it.kind != "task"), None)
        return processor(system.S, system.M, system.has_host, thread.number if thread else 0)

    def memory(self, address: int, size: int) -> bytes:
        """Memory as the program addresses it, as much of `size` as there is from `address` on."""
        found = b""
        while size > 0:
            piece = min(size, 4096 - (address & 0xFFF))
            at = self.session.linear(address)
            if at == address:
                at = self.session.program.physical(at)
            if at is None or not self._is_ram(at, piece):
                piece = next((n for n in range(piece - 1, 0, -1) if at and self._is_ram(at, n)), 0)
                return found + self.system.read(at, piece) if piece and at is not None else found
            found += self.system.read(at, piece)
            address, size = address + piece, size - piece
        return found

    def _is_ram(self, address: int, size: int) -> bool:
        from vpmu_emu.system import ram_pieces

        pieces = ram_pieces(self.system.ram_size)
        return any(base <= address and address + size <= base + length for base, _, length in pieces)

    def exact_memory(self, address: int, size: int) -> bytes:
        """`size` bytes.

        Raises:
            ConfigError: not all of them are there.
        """
        found = self.memory(address & (1 << 64) - 1, size)
        if len(found) < size:
            from vpmu_emu.system import ram_pieces

            pieces = ram_pieces(self.system.ram_size)
            where = ", ".join(f"{base:#x} to {base + n - 1:#x}" for base, _, n in pieces)
            raise ConfigError(shown(hex(address)).strip("'"), "outside memory, or not mapped", where)
        return found

    def changed(self, part: str, values: Mapping[str, int]) -> set[str]:
        """The names whose value is another one than at the stop before."""
        before = self.before.get(part)
        if before is None:
            return set()
        return {name for name, value in values.items() if before.get(name) != value}

    def remember(self) -> None:
        """Take the values of now as those of the stop before."""
        self.head = int(self.system.E.ring_head)
        self.before = {
            "regs": dict(self.session.registers()), "pmu": pmu_values(self), "lvt": lvt_values(self),
            "exits": dict(self.session.exits()), "watch": watch_values(self),
        }  # fmt: skip

    def fresh(self, kinds: set[int] | None = None) -> Any:
        """The events of the trace since the stop before."""
        return events_since(self.system, self.head, kinds)


def events_since(system: Any, head: int, kinds: set[int] | None = None) -> Any:
    """Events of the ring from number `head` on, of some kinds or all; those that are lost are not there."""
    found = system.events_since(head)
    return found if kinds is None else found[np.isin(found["kind"], list(kinds))]


def mark(name: Text | str, changed: bool) -> Text:
    """A name with the mark of what has changed, or room for it."""
    return text(MARK, "changed") + text(name, "changed") if changed else " " + text(name, "name")


def place(look: Look, address: int) -> Text:
    """`0x100010 <loop+4>`."""
    name = listing.name_of(look.session.program, address)
    return text(f"{address:#x}", "place") + (text(f" <{name}>", "name") if name else "")


def source_place(look: Look, address: int) -> str:
    """`file.s:12` without its folders, "" if there is none."""
    line = look.session.program.line_at(address)
    return f"{line.file.rpartition('/')[2]}:{line.line}" if line else ""


# --- regs -----------------------------------------------------------------------------------------------
def flag_words(rflags: int) -> str:
    """The flags that are set, in the order of their bits."""
    return " ".join(name for bit, name in RFLAGS if rflags >> bit & 1)


def regs(look: Look, screen: Screen) -> None:
    """All registers."""
    values = look.session.registers()
    changed = look.changed("regs", values)
    who = look.processor()
    state = [f"CPL {who.cpl}", "IF 1" if who.interrupts_on else "IF 0"]
    state += [f"{who.shadow} shadow"] if who.shadow else []
    state += ["NMI blocked"] if who.nmi_blocked else []
    state += ["halted"] if who.halted else []
    screen.banner("regs", ", ".join(state))
    cells = [
        mark(f"{name:<3}", name in changed) + text(f" {value:#018x}", "changed" if name in changed else "")
        for name, value in values.items() if name not in ("rip", "rflags")
    ]  # fmt: skip
    screen.flow(cells)
    rip, rflags = values["rip"], values["rflags"]
    screen.line(mark("rip", "rip" in changed) + " ", place(look, rip))
    screen.line(mark("rflags", "rflags" in changed), f" {rflags:#x} {flag_words(rflags)}")


def changed_regs(look: Look, screen: Screen) -> None:
    """Only the registers that have changed since the stop before."""
    values = look.session.registers()
    changed = look.changed("regs", values) - {"rip"}
    if not changed:
        return
    screen.banner("changed")
    before = look.before["regs"]
    cells = []
    for name in values:
        if name in changed:
            new = f"{values[name]:#x}"
            if name == "rflags":
                new += f" {flag_words(values[name])}"
            cells.append(mark(name, True) + f" {before[name]:#x} -> " + text(new, "changed"))
    screen.flow(cells)


# --- code -----------------------------------------------------------------------------------------------
def code(look: Look, screen: Screen, before: int = 3, after: int = 6) -> None:
    """Instructions around the next one: their source, and their bytes as they are in memory."""
    program, rip = look.session.program, look.session.rip
    rows = listing.preceding(program, look.memory, rip, before)
    # Behind the program's last byte is nothing that anybody wrote.
    inside = program.holds(rip)
    ahead = islice(listing.following(program, look.memory, rip), after if inside else 2)
    rows += takewhile(lambda row: not inside or program.holds(row.addr), ahead)
    screen.banner("code", source_place(look, rip) or text("no source", "dim"))
    if not rows:
        screen.line(text(f"there is no memory at {rip:#x}", "bad"))
        return
    show_code(look, screen, rows)


def show_code(look: Look, screen: Screen, rows: list[listing.Row]) -> None:
    """Rows below the lines of the source that they come from."""
    program, rip = look.session.program, look.session.rip
    per_line = 7 if screen.width < 110 else 15
    wide = max(3 * min(per_line, len(row.code)) for row in rows)
    names: dict[int, list[str]] = {}
    for name, value in program.symbols.items():
        if name not in program.equates:
            names.setdefault(value, []).append(name)
    last: tuple[str, int] | None = None
    for row in rows:
        for name in names.get(row.addr, ()):
            screen.line(text(f"{name}:", "name"))
        line = row.line
        if line is not None and (line.file, line.line) != last:
            source = listing.source_line(program, line)
            # A statement that stands in its line alone is not said twice.
            if listing.bare(source.split("#")[0]) != row.text or row.patched:
                row_of_source = f"{line.line:>6} {source}"
                cut = len(row_of_source) > screen.width
                screen.line(text(row_of_source[: screen.width - 1] + "…" if cut else row_of_source, "dim"))
            last = (line.file, line.line)
        here = row.addr == rip
        head = text("=> ", "here") if here else "   "
        shown_bytes = [row.code[n : n + per_line].hex(" ") for n in range(0, len(row.code), per_line)]
        # What a macro has made of its arguments may be long; the source stands above it.
        room = screen.width - wide - len(f"{row.addr:#x}") - 6
        words = row.text if len(row.text) <= room or not row.plain else row.plain
        tail = text(words, "here" if here else "")
        if row.target is not None and f"{row.target:#x}" in words:
            name = listing.name_of(program, row.target)
            tail = tail + (text(f"  # <{name}>", "name") if name else "")
        if row.patched:
            tail = tail + text("  # memory is not what the source says", "changed")
        screen.line(
            head, text(f"{row.addr:#x}", "place"), "  ",
            text(f"{shown_bytes[0]:<{wide}}", "changed" if row.patched else "dim"), " ", tail,
            hang=min(wide + len(f"{row.addr:#x}") + 6, screen.width // 2),
        )  # fmt: skip
        for n, more in enumerate(shown_bytes[1:], 1):
            screen.line("   ", text(f"{row.addr + n * per_line:#x}", "dim"), "  ", text(more, "dim"))


def decoded_words(index: int, value: int, events: str) -> str:
    """` (usr os en)`: what a value says in an MSR, "" if that is no more than the value."""
    words = value_words(index, value, events)
    plain = words in ("0", f"{value:#x}") or re.fullmatch(rf"\w+={value:#x}", words)
    return "" if plain else f" ({words})"


# --- msr ------------------------------------------------------------------------------------------------
def access_text(look: Look, access: Access) -> Text:
    """One access, decoded by field."""
    events = look.system.model.events
    head = text(f"{access.kind} ", "key") + text(access.name, "name")
    if access.pending:
        coming = f" = {access.value:#x}{decoded_words(access.index, access.value, events)}"
        return head + (coming if access.kind == "wrmsr" else "") + text(" is next", "dim")
    if access.kind == "rdpmc":
        return head + (text(" #GP", "bad") if access.fault else f" gives {access.value:#x}")
    decoded = decoded_words(access.index, access.value, events)
    if access.fault:
        tried = f" = {access.value:#x}{decoded}" if access.kind == "wrmsr" else ""
        return head + tried + text(" #GP", "bad")
    if access.kind == "rdmsr":
        return head + f" gives {access.value:#x}{decoded}"
    old = "" if access.old is None else f"{access.old:#x} -> "
    return head + f" {old}{access.value:#x}{decoded}"


def msr(look: Look, screen: Screen, count: int = 5) -> None:
    """The accesses since the stop before."""
    stop = look.stop
    recent = stop.recent[-count:] if stop is not None else ()
    if stop is None or not recent or recent == stop.accesses:  # which the stop has told
        return
    more = len(look.fresh(ACCESS_KINDS)) - len(recent)
    screen.banner("msr", f"{more:,} earlier ones: events msr" if more > 0 else "")
    show_accesses(look, screen, recent)


def show_accesses(look: Look, screen: Screen, accesses: Iterable[Access]) -> None:
    """Accesses below each other, behind the line of the source, or the address, that did each."""
    rows = []
    here = look.session.program.line_at(look.session.rip)
    for access in accesses:
        line = look.session.program.line_at(access.rip)
        where = f"{access.rip:#x}" if line is None else source_place(look, access.rip)
        if line is not None and here is not None and line.file == here.file:
            where = str(line.line)
        rows.append([text(f" {where:>5}", "dim"), access_text(look, access)])
    screen.columns(rows)


# --- pmu ------------------------------------------------------------------------------------------------
def pmu_values(look: Look) -> dict[str, int]:
    """Controls and counters by name."""
    return dict(look.session.pmu())


def counter_text(it: Counter, changed: bool) -> list[Text | str]:
    """Cells of one counter: name, value, distance to overflow, state, what it counts."""
    state = text("counts", "good") if it.counts else text("off", "dim")
    if it.on and not it.global_on:
        state = text("off by GLOBAL_CTRL", "dim")
    elif it.on and not it.counts:
        state = text("stands still", "bad")
    far = f"{it.left:,} to overflow" if it.left < 1 << 32 else ""
    flags = [text("OVERFLOWED", "bad")] if it.overflowed else []
    why = it.uncounted or (it.held if it.on and it.global_on else "")
    what = text(it.event) + (text(f"{': ' if it.event else ''}{why}", "bad") if why else "")
    style = "changed" if changed else ""
    return [
        mark(it.name, changed),
        text(f"{it.value:#x}", style),
        far,
        state,
        join(" ", [*flags, what]),
    ]


def pmu(look: Look, screen: Screen, everything: bool = False) -> None:
    """Controls that are not 0, and counters that somebody uses."""
    system = look.system
    if not pmu_version(system):
        screen.banner("pmu", "there is none")
        return
    values = pmu_values(look)
    changed = look.changed("pmu", values)
    found = counters(system)
    used = [it for it in found if everything or not it.idle]
    screen.banner("pmu", f"{len(found) - len(used)} counters unused" if len(used) < len(found) else "")
    events = system.model.events
    cells = []
    for name in ("IA32_PERF_GLOBAL_CTRL", "IA32_PERF_GLOBAL_STATUS"):
        words = value_words(by_name(name), values[name], events)
        new = f"{values[name]:#x}" + (f" ({words})" if values[name] else "")
        short = name.removeprefix("IA32_PERF_")
        cells.append(
            mark(short, name in changed) + " " + text(new, "changed" if name in changed else "")
        )
    screen.flow(cells)
    rows = [
        counter_text(it, it.name in changed or (it.index < 32 and it.control in changed)) for it in used
    ]
    screen.columns(rows)


# --- lvt ------------------------------------------------------------------------------------------------
def lvt_values(look: Look) -> dict[str, int]:
    """Entries of the local vector table."""
    lapic = look.processor().lapic
    return {name: int(value) for name, value in zip(LVT_NAMES, lapic.lvt, strict=True)}


def lvt_words(name: str, value: int) -> str:
    """What an entry does with its interrupt."""
    mode = ("fixed", "?", "SMI", "?", "NMI", "INIT", "?", "ExtINT")[value >> 8 & 7]
    words = f"vector {value & 0xFF:#x}" if mode == "fixed" else mode
    if name == "timer":
        words += (", one-shot", ", periodic", ", TSC-deadline", "")[value >> 17 & 3]
    return words + (", masked" if value >> 16 & 1 else "")


def vectors(words: Any) -> list[int]:
    """The vectors whose bits are set in IRR or ISR."""
    return [64 * k + n for k in range(4) for n in range(64) if int(words[k]) >> n & 1]


def lvt(look: Look, screen: Screen) -> None:
    """What the local APIC does with the interrupts of its own, and which wait."""
    lapic = look.processor().lapic
    values = lvt_values(look)
    changed = look.changed("lvt", values)
    off = lapic_off(lapic)
    screen.banner("lvt", f"{lapic_mode(lapic)}, " + (f"off: {off}" if off else "on"))
    cells = []
    for name, value in values.items():
        style = "changed" if name in changed else "dim" if value >> 16 & 1 else ""
        cells.append(
            mark(f"{name:<7}", name in changed) + text(f" {value:#x} {lvt_words(name, value)}", style)
        )
    screen.flow(cells)
    waiting = " ".join(f"{v:#x}" for v in vectors(lapic.irr)) or "none"
    serving = " ".join(f"{v:#x}" for v in vectors(lapic.isr)) or "none"
    screen.line(f" requested (IRR) {waiting}; in service (ISR) {serving}; TPR {int(lapic.tpr):#x}")


# --- exits, perf, trace ---------------------------------------------------------------------------------
def exits(look: Look, screen: Screen) -> None:
    """VM-exits by reason: since the stop before, and in all."""
    values = look.session.exits()
    if not look.system.has_host:
        screen.banner("exits", "no hypervisor")
        return
    before = look.before.get("exits", {})
    screen.banner("exits", f"{sum(values.values()):,} in all")
    rows: list[list[Text | str]] = []
    for name, count in sorted(values.items(), key=lambda item: -item[1]):
        grown = count - before.get(name, 0)
        rows.append(
            [mark(name, bool(grown)), f"{count:>8,}", text(f"+{grown:,}", "changed") if grown else ""]
        )
    screen.columns(rows)
    fresh = look.fresh({TR_VM_EXIT})
    if len(fresh):
        last = fresh[-1]
        screen.line(
            " last: ", exit_name(int(last["a"]) & 0xFFFF), " at ", place(look, int(last["rip"]))
        )


def perf(look: Look, screen: Screen) -> None:
    """Perf events of the host."""
    from vpmu_emu.views.perf import perf_report

    if not look.system.has_host:
        screen.banner("perf", "no host")
        return
    found = perf_report(look.system.S)
    screen.banner("perf", f"{len(found)} events")
    rows: list[list[Text | str]] = []
    for event in found[: 4 * SHOWN]:
        style = {"ERROR": "bad", "ACTIVE": "good"}.get(event["state"], "dim")
        owner = f"kvm {event['pmc']}" if event["owner"] == "kvm" else "host"
        where = f"cpu {event['cpu']}" if event["context"] == "cpu" else "task"
        facts = [f"on {event['hw_idx']}" if event["hw_idx"] else where]
        facts += [event["cause"]] if event["cause"] and event["state"] == "ERROR" else []
        facts += [f"period {event['period']:,}"] if 0 < event["period"] < 1 << 32 else []
        rows.append(
            [
                f" {event['id']}", text(event["name"], "name"), owner, text(event["state"], style),
                f"{event['count']:>12,}", ", ".join(facts),
            ]
        )  # fmt: skip
    screen.columns(rows)


def trace(look: Look, screen: Screen, count: int = SHOWN) -> None:
    """The events since the stop before."""
    found = look.fresh()
    more = max(0, len(found) - count)
    screen.banner("trace", f"{more:,} earlier ones: events" if more else "")
    show_events(look, screen, found[-count:] if count else found)


def show_events(look: Look, screen: Screen, events: Any) -> None:
    """Events in the words of the trace, each behind the TSC at which it happened."""
    program, core = look.session.program, look.system.core

    def short(address: int) -> str:
        return program.place(address).rpartition("/")[2]

    for t, words in decode(events, short, look.system.model.events):
        what, hash_, where = words.partition("  # ")
        tail = text(f"  # {where}" if hash_ else "", "dim")
        screen.line(" ", text(f"{tsc_value(core, t):,} ", "dim"), what, tail)


# --- watch ----------------------------------------------------------------------------------------------
def watch_values(look: Look) -> dict[str, int]:
    """Values of what is displayed."""
    found = {}
    for number, (_, expression) in look.displays.items():
        try:
            value = look.session.evaluate(expression)
        except VpmuError:
            continue
        if isinstance(value, int):
            found[str(number)] = value
    return found


def watch(look: Look, screen: Screen) -> None:
    """What `display` was given."""
    if not look.displays:
        return
    screen.banner("watch")
    values = watch_values(look)
    changed = look.changed("watch", values)
    rows: list[list[Text | str]] = []
    for number, (form, expression) in look.displays.items():
        try:
            words = shown_value(look, look.session.evaluate(expression), form)
        except VpmuError as error:
            words = str(error).splitlines()[0]
        new = str(number) in changed
        rows.append([mark(str(number), new), expression, text(words, "changed" if new else "")])
    screen.columns(rows)


def shown_value(look: Look, value: Any, form: str) -> str:
    """A value as `display` has it: in a format of `p`, or by i the instruction there.

    Raises:
        VpmuError: no such format.
    """
    if form != "i" or not isinstance(value, int):
        return value_text(value, form)
    row = listing.decode(look.session.program, look.memory, value)
    name = listing.name_of(look.session.program, value)
    where = f"{value:#x}{f' <{name}>' if name else ''}"
    return f"{where}: {row.text}" if row is not None else f"{where}: there is no memory"


def value_text(value: Any, form: str = "") -> str:
    """A value in a format of `p`."""
    if not isinstance(value, int):
        return repr(value)
    return formatted(value, form, 8) if form else f"{value} ({value:#x})"


def formatted(value: int, style: str, size: int) -> str:
    """A number of `size` bytes in a format x d u o t c.

    Raises:
        VpmuError: no such format.
    """
    bits = 8 * size
    value &= (1 << bits) - 1
    if style in ("", "x"):
        return f"{value:#0{2 * size + 2}x}"
    if style == "d":
        return str(value - (1 << bits) if value >> bits - 1 & 1 else value)
    if style == "t":
        return f"{value:#b}"
    if style == "o":
        return f"{value:#o}"
    if style == "c":
        return repr(chr(value & 0xFF))
    if style == "u":
        return str(value)
    raise VpmuError(f"unknown format {shown(style)}; x d u o t c")


Section = Callable[[Look, Screen], None]
SECTIONS: dict[str, Section] = {
    "regs": regs, "changed": changed_regs, "code": code, "msr": msr, "pmu": pmu, "lvt": lvt, "exits": exits,
    "perf": perf, "trace": trace, "watch": watch,
}  # fmt: skip
USUAL = ("changed", "msr", "pmu", "watch", "code")


def kinds_named(words: list[str]) -> Iterator[int]:
    """Kinds of events by name, as the trace has it or a part of it; `msr`, `exit`, `pmi`, `perf` too.

    Raises:
        VpmuError: no kind has such a name.
    """
    from vpmu_emu.options import did_you_mean

    for word in words:
        found = [kind for kind, name in KIND_NAMES.items() if word.lower() in name.lower()]
        if not found:
            names = sorted(set(KIND_NAMES.values()))
            raise VpmuError(
                f"events: no kind of event is called {shown(word)}{did_you_mean(word, names)}"
                f" (allowed: {' '.join(names)})"
            )
        yield from found


def named(index: int) -> str:
    """An MSR by name and number."""
    return f"{msr_name(index)} ({index:#x})"
