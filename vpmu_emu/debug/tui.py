"""The REPL on a whole screen: its words and its sections side by side; no run depends on it."""

from __future__ import annotations

import io
import queue
import threading
from collections.abc import Callable
from typing import Any, ClassVar

from rich.text import Text as Painted
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, VerticalScroll
from textual.widgets import Input, RichLog, Static

from vpmu_emu.debug import pages, sections
from vpmu_emu.debug.counters import counters, pmu_version
from vpmu_emu.debug.repl import Quit, Repl
from vpmu_emu.debug.screen import NARROWEST, Screen, Text, text
from vpmu_emu.debug.sections import ACCESS_KINDS, Look
from vpmu_emu.debug.session import Session
from vpmu_emu.machine.ring import (
    TR_GUEST_RDMSR,
    TR_GUEST_WRMSR,
    TR_GUEST_WRMSR_BLIND,
    TR_VM_ENTRY,
    TR_VM_EXIT,
)
from vpmu_emu.tables.msrs import msr_name

WIDE, HIGH = 150, 45  # from this size on every pane is seen at once
BAR = 16  # cells of a counter's bar
RECENT = 12  # accesses in the pane of MSR traffic
LATEST = 4096  # events that the timeline looks at
CLOSE = 64  # bits: a bar is empty this many doublings from overflow, where a counter has no width


def source_pane(look: Look, screen: Screen) -> None:
    """The instructions around the next one, with their bytes."""
    sections.code(look, screen, 4, 12)


def pmu_pane(look: Look, screen: Screen) -> None:
    """Controls and counters, and how near to overflow each is: a cell is a share of its doublings."""
    sections.pmu(look, screen)
    if not pmu_version(look.system):
        return
    rows: list[list[Text | str]] = []
    for it in counters(look.system):
        if it.idle:
            continue
        bits = it.mask.bit_length() or CLOSE
        full = BAR - round(BAR * (it.left - 1).bit_length() / bits)
        style = "bad" if it.overflowed else "good" if it.counts else "dim"
        bar = text("#" * full, style) + text("." * (BAR - full), "dim")
        rows.append(
            [text(f" {it.name}", "name"), text("[") + bar + "]", f"{it.left:,} to overflow"]
        )
    screen.columns(rows)


def _latest(look: Look, kinds: set[int] | None = None) -> Any:
    system = look.system
    return sections.events_since(system, max(0, int(system.E.ring_head) - LATEST), kinds)


def msr_pane(look: Look, screen: Screen) -> None:
    """What decides for each register of the last accesses whether they exit, then those accesses."""
    recent = _latest(look, ACCESS_KINDS)[-RECENT:]
    screen.banner("msr", f"the last {len(recent)}" if len(recent) else "no access yet")
    writes = {TR_GUEST_WRMSR: True, TR_GUEST_WRMSR_BLIND: True, TR_GUEST_RDMSR: False}
    seen = [
        (int(it["a"]), writes[int(it["kind"])]) for it in recent[::-1] if int(it["kind"]) in writes
    ]
    for index, wrote in dict.fromkeys(seen):
        head = text(" wrmsr " if wrote else " rdmsr ", "key") + text(msr_name(index), "name")
        screen.line(head, " ", pages.access_path(look, index, wrote))
    sections.show_events(look, screen, recent)


def timeline_pane(look: Look, screen: Screen) -> None:
    """Who ran on each core over the last events, in their order: G the guest, H the kernel of the host.

    Cells are events, not time: a guest that runs for 100 cycles between exits of 10,000 would not be seen.
    """
    found = _latest(look)
    has_host = look.system.has_host
    screen.banner("timeline", "G guest, H host" if has_host else "no hypervisor: B the program")
    if not len(found):
        screen.line(text(" no event yet", "dim"))
    cells = max(8, screen.width - 10)
    for cpu in sorted({int(it) for it in found["cpu"]}):
        own = found[found["cpu"] == cpu]
        kinds = [int(kind) for kind in own["kind"]]
        turns = [kind for kind in kinds if kind in (TR_VM_ENTRY, TR_VM_EXIT)]
        who = "B" if not has_host else "G" if turns[:1] == [TR_VM_EXIT] else "H"
        row, spent, since = "", {"B": 0, "G": 0, "H": 0}, int(own["t"][0])
        for event in own:
            kind, t = int(event["kind"]), int(event["t"])
            spent[who] += t - since
            since = t
            if has_host:
                who = {TR_VM_ENTRY: "G", TR_VM_EXIT: "H"}.get(kind, who)
            row += who
        words = Text()
        for letter in row[-cells:]:
            words = words + text(letter, "place" if letter == "H" else "good")
        screen.line(text(f" core {cpu}  ", "name"), words)
        parts = (("B", "the program"), ("G", "guest"), ("H", "host"))
        told = ", ".join(f"{name} {spent[it] // 16:,} cycles" for it, name in parts if spent[it])
        screen.line(text(f"   {len(own):,} events: {told}" if told else "", "dim"))


def serial_pane(look: Look, screen: Screen) -> None:
    """What the program has written to COM1."""
    said = look.system.serial
    screen.banner("serial", f"{len(said):,} characters")
    for row in said.splitlines()[-200:]:
        screen.line(row)


PANES: dict[str, Callable[[Look, Screen], None]] = {
    "source": source_pane, "regs": sections.regs, "pmu": pmu_pane, "msr": msr_pane,
    "exits": sections.exits, "timeline": timeline_pane, "serial": serial_pane,
}  # fmt: skip
KEYS = {
    "f5": "c", "f6": "rc", "f7": "rs", "f8": "finish", "f10": "n", "f11": "s",
}  # fmt: skip


def shown_in(pane: str, look: Look, width: int, colour: bool) -> str:
    """What a pane shows, in lines of at most `width` columns."""
    out = io.StringIO()
    PANES[pane](look, Screen(out.write, max(NARROWEST, width), colour))
    return out.getvalue()


class _Pausing(Repl):
    """A REPL whose moves another thread can end, as Ctrl-C does, between two slices of the machine."""

    pause: threading.Event

    def _between(self, keep: Callable[[], None] | None) -> None:
        super()._between(keep)
        if self.pause.is_set():
            self.pause.clear()
            raise KeyboardInterrupt


class Tui(App[int]):
    """The debugger on a screen of any size; its value is how many lines could not be obeyed."""

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #panes { height: 1fr; }
    .pane { width: 1fr; height: 1fr; padding: 0 1; }
    #tabs, #state { height: 1; padding: 0 1; }
    #said { height: 6; padding: 0 1; border-top: solid gray; }
    #line { height: 1; border: none; padding: 0 1; }
    .wide #panes { layout: grid; grid-size: 3 3; grid-rows: 1fr 1fr 1fr; grid-gutter: 1 1; }
    .wide #source { row-span: 2; }
    .wide #said { height: 12; }
    .wide #tabs { display: none; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+c", "pause", "Stop the run", priority=True),
        Binding("ctrl+d", "leave", "Quit", priority=True),
        Binding("f2", "turn(-1)", "Pane before", priority=True),
        Binding("f3", "turn(1)", "Next pane", priority=True),
        *(Binding(key, f"obey('{word}')", word, priority=True) for key, word in KEYS.items()),
    ]

    def __init__(self, session: Session, colour: bool = True) -> None:
        super().__init__()
        self.colour = colour
        self._said: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.repl = _Pausing(session, Screen(self._said.put, 80, colour))
        self.repl.pause = threading.Event()
        self.repl.shown = []
        self.active = "source"
        self.running = False

    def compose(self) -> ComposeResult:
        """The parts of the screen from top to bottom."""
        yield Static(id="tabs")
        with Container(id="panes"):
            for name in PANES:
                yield VerticalScroll(Static(markup=False), id=name, classes="pane", can_focus=False)
        yield Static(id="state", markup=False)
        yield RichLog(id="said", wrap=False, auto_scroll=True)
        yield Input(id="line", placeholder="a command of the debugger, or help")

    def on_mount(self) -> None:
        """Say where the program stands."""
        self.query_one("#said").can_focus = False
        self.query_one("#line").focus()
        self.repl.start()
        self.set_interval(0.1, self._drain)
        self.call_after_refresh(self._fit)

    def on_resize(self, event: events.Resize) -> None:  # noqa: ARG002
        """Lay the panes out anew."""
        self.call_after_refresh(self._fit)

    def _fit(self) -> None:
        wide = self.size.width >= WIDE and self.size.height >= HIGH
        self.screen.set_class(wide, "wide")
        for name in PANES:
            self.query_one(f"#{name}").display = wide or name == self.active
        self.repl.screen.width = max(NARROWEST, self.size.width - 4)
        tabs = Text()
        for name in PANES:
            tabs = tabs + text(f"[{name}]" if name == self.active else f" {name} ", "title")
        self.query_one("#tabs", Static).update(Painted(str(tabs + "  F2 F3")))
        self.call_after_refresh(self.look_again)

    def look_again(self) -> None:
        """Show what is there now; not while it runs, when nothing is at rest."""
        self._drain()
        if self.running:
            return
        for name in PANES:
            pane = self.query_one(f"#{name}")
            if pane.display:
                words = shown_in(name, self.repl.look, pane.size.width - 4, self.colour)
                pane.query_one(Static).update(Painted.from_ansi(words))
        keys = " ".join(f"{key.upper()} {word}" for key, word in KEYS.items())
        stop = self.repl.look.stop
        state = pages.time_text(self.repl.session.system) if stop is None else stop.reason
        self.query_one("#state", Static).update(f"{state} | {keys}"[: self.size.width - 2])

    def _drain(self) -> None:
        said = ""
        while not self._said.empty():
            said += self._said.get()
        if said:
            self.query_one("#said", RichLog).write(Painted.from_ansi(said.rstrip("\n")))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Obey a line; an empty one repeats, as in the REPL."""
        event.input.value = ""
        self.action_obey(event.value)

    def action_obey(self, line: str) -> None:
        """Give one line to the REPL, which runs beside the screen."""
        if self.running:
            return
        self.running = True
        self.repl.pause.clear()
        self.repl.screen.line(text(f"{self.repl.prompt} {line}", "dim"))
        self.query_one("#state", Static).update("running; Ctrl-C stops it")
        self.run_worker(lambda: self._obeyed(line), thread=True, exit_on_error=True)

    def _obeyed(self, line: str) -> None:
        leave = False
        try:
            self.repl.obey(line)
        except Quit:
            leave = True
        finally:
            self.running = False
        self.call_from_thread(self.action_leave if leave else self.look_again)

    def action_pause(self) -> None:
        """Ctrl-C: end the run that goes on, never the program."""
        if self.running:
            self.repl.pause.set()

    def action_leave(self) -> None:
        """End; a run that goes on is stopped first."""
        self.repl.pause.set()
        self.exit(self.repl.failures)

    def action_turn(self, by: int) -> None:
        """Another pane, where not all are seen."""
        names = list(PANES)
        self.active = names[(names.index(self.active) + by) % len(names)]
        self._fit()


def run(session: Session, colour: bool) -> Any:
    """Debug on the whole terminal until the user leaves; how many lines could not be obeyed."""
    return Tui(session, colour).run()
