"""What docs/debug.md shows of the debugger, and the screens that tests compare: written by running it.

    python -m tests.tools.debugger_page

A block of the page that begins with `$ vpmu debug` is a session: its lines behind the prompt are typed
again.
"""

from __future__ import annotations

import io
import os
import re
import shlex
from pathlib import Path

from tests.conftest import ROOT
from vpmu_emu.debug.repl import PROMPT, PROMPT_OF_LIST, Quit, Repl
from vpmu_emu.debug.screen import Screen
from vpmu_emu.debug.session import Session
from vpmu_emu.load import load

PAGE = ROOT / "docs" / "debug.md"
SCREENS = ROOT / "tests" / "debug" / "screens"
WIDTHS = (80, 200)
_BLOCK = re.compile(r"^```\n\$ vpmu debug (.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILTERED = "guests/conformance/x_msr_filter"

# Every section and page, in the modes that differ in them.
_LOOKS = (
    "context regs code msr pmu lvt exits perf trace watch", "info lapic", "info idt", "info gdt",
    "info control", "msr IA32_PERFEVTSEL0", "msr 0x38f",
    "why pmi", "why pmc0", "why wrmsr", "bt", "info break", "info display",
    "events count", "events msr 3", "x/4xg samples", "disas pmi,pmi+20", "l pmi", "info threads", "when",
)  # fmt: skip
# What stands behind `vpmu debug`, and what is typed.
TALKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "bare": ("guests/lessons/03_overflow_pmi.s --vpmu bare", (
        "s", "b pmi", "display mem64(samples)", "c", *_LOOKS, "d", "c",
    )),
    "emulated": ("guests/lessons/03_overflow_pmi.s --vpmu emulated", (
        "watch msr IA32_PERF_GLOBAL_CTRL rw", "b pmi if rbx == 1", "c", "c", "c", "c", "c", *_LOOKS,
        "info vmcs guest",
    )),
    "mediated": ("guests/lessons/06_sampling.s --vpmu mediated", (
        "catch pmi", "c", "why", "why pmi", "checkpoint", "catch overflow pmc0", "c", "info break",
        "reverse-continue", "reverse-step 2", "restart 1", "watch msr 0x830..0x83f w before",
        "d 1 2", "b 178", "until #180", "stepexit", "info exits", "info vmcs exit",
    )),
    "contention": ("guests/lessons/07_contention.s --vpmu emulated --host guests/host/noisy_neighbour.s", (
        "b stopped", "c", "why pmc0", "info perf", "context exits", "info threads",
    )),
    "filter": ("guests/lessons/04_filter.s --vpmu passthrough --filter guests/lessons/04_filter.toml", (
        "b opened", "c", "info filter", "why pmc1", "info pmu",
    )),
    "msr_filter": (
        f"{_FILTERED}.s --vpmu emulated --msr-filter {_FILTERED}.toml",
        ("catch exception", "c", "why", "why rdmsr last", "info filter", "bt"),
    ),
    "help": ("guests/lessons/01_count.s --vpmu bare", (
        "help", "help watch", "help info", "help sections", "frob", "p rxx", "info options",
    )),
}  # fmt: skip


def talk(repl: Repl, lines: list[str], out: io.StringIO) -> None:
    """Type lines; prompt and line are shown before each answer."""
    repl.start()
    for line in lines:
        out.write(f"{repl.prompt}{line}\n")
        try:
            repl.obey(line)
        except Quit:
            break


def session(words: str) -> Session:
    """The session that the words of a command line mean, from the root of the tree."""
    guest, *more = shlex.split(words)
    asked: dict[str, object] = {}
    for name, value in zip(more[::2], more[1::2], strict=True):
        key = name.removeprefix("--").replace("-", "_")
        asked[key] = [value] if key == "host" else value
    program = load(guest, {})
    return Session(program, **asked)


def replayed(words: str, body: str) -> str:
    """A block's text as it is now."""
    lines = [
        line.removeprefix(prompt) for line in body.splitlines() for prompt in (PROMPT, PROMPT_OF_LIST)
        if line.startswith(prompt)
    ]  # fmt: skip
    out = io.StringIO()
    talk(Repl(session(words), Screen(out.write)), lines, out)
    return out.getvalue()


def blocks(page: str) -> list[tuple[str, str]]:
    """(words of the command line, what follows) of each session on a page."""
    return [(match[1], match[2]) for match in _BLOCK.finditer(page)]


def renewed(page: str) -> str:
    """The page with its sessions as they are now."""
    return _BLOCK.sub(lambda m: f"```\n$ vpmu debug {m[1]}\n{replayed(m[1], m[2])}```", page)


def screen(name: str, width: int, colour: bool) -> str:
    """One talk of TALKS on a screen; escapes are written <1;33> and <0>."""
    words, lines = TALKS[name]
    out = io.StringIO()
    talk(Repl(session(words), Screen(out.write, width, colour)), list(lines), out)
    return re.sub("\x1b\\[([0-9;]*)m", r"<\1>", out.getvalue())


def screen_file(name: str, width: int, colour: bool) -> Path:
    """Where that is kept."""
    return SCREENS / f"{name}.{width}{'.colour' if colour else ''}.txt"


def main() -> None:
    """Write the page and the screens anew."""
    os.chdir(ROOT)  # paths of guests are a part of what is shown
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    SCREENS.mkdir(exist_ok=True)
    for name in TALKS:
        for width in WIDTHS:
            for colour in (False, True):
                text = screen(name, width, colour)
                screen_file(name, width, colour).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
