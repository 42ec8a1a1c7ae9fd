"""Lines as they are typed, with history and completion: by prompt_toolkit, else by readline."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from vpmu_emu.debug.complete import candidates
from vpmu_emu.debug.repl import Repl

HISTORY = 1000  # lines that are kept
HINT = "for completion as you type, install the extra `debug`: pip install 'vpmu-emu[debug]'"


def history_file() -> Path | None:
    """Where lines are kept from one session to the next; None where there can be no such file."""
    try:
        base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        folder = Path(base) / "vpmu_emu"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / "debug_history"
        path.touch(mode=0o600, exist_ok=True)
    except (OSError, RuntimeError, ValueError):
        return None
    return path if os.access(path, os.R_OK | os.W_OK) and path.is_file() else None


def typed_lines(repl: Repl) -> Iterator[str]:
    """Lines of a terminal; Ctrl-C begins a new one, Ctrl-D ends them."""
    ask = _asking(repl)
    while True:
        try:
            yield ask(repl.prompt)
        except EOFError:
            repl.screen.write("\n")
            return
        except KeyboardInterrupt:
            repl.screen.write("\n")


def piped_lines(source: IO[str]) -> Iterator[str]:
    """Lines of a pipe or a file, to its end, whatever Ctrl-C there is meanwhile."""
    while True:
        try:
            line = source.readline()
        except KeyboardInterrupt:
            continue
        if not line:
            return
        yield line


def _asking(repl: Repl) -> Callable[[str], str]:
    try:
        return _prompt_toolkit(repl)
    except ImportError:
        return _readline(repl)


def _prompt_toolkit(repl: Repl) -> Callable[[str], str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import Completer, Completion
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.output import ColorDepth

    class Candidates(Completer):  # type: ignore[misc]
        def get_completions(self, document: Any, complete_event: Any) -> Iterator[Any]:  # noqa: ARG002
            line = document.text_before_cursor
            start, names = candidates(repl, line)
            for name in names:
                yield Completion(name, start_position=start - len(line))

    path = history_file()
    session: Any = PromptSession(
        history=FileHistory(str(path)) if path else InMemoryHistory(),
        completer=Candidates(),
        complete_while_typing=False,
        enable_history_search=True,
        color_depth=None if repl.screen.colour else ColorDepth.DEPTH_1_BIT,
    )
    return lambda prompt: str(session.prompt(prompt))


def _readline(repl: Repl) -> Callable[[str], str]:
    try:
        import readline
    except ImportError:  # a Python without it
        return input
    found: list[str] = []

    def complete(_: str, n: int) -> str | None:
        if n == 0:
            begin = readline.get_begidx()
            start, names = candidates(repl, readline.get_line_buffer()[: readline.get_endidx()])
            found[:] = [name[max(0, begin - start) :] for name in names]
        return found[n] if n < len(found) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" \t\n")
    readline.parse_and_bind("tab: complete")
    readline.set_history_length(HISTORY)
    path = history_file()
    if path is not None:
        with contextlib.suppress(OSError):
            readline.read_history_file(path)

    def ask(prompt: str) -> str:
        line = input(prompt)
        if path is not None:
            with contextlib.suppress(OSError):
                readline.write_history_file(path)
        return line

    repl.screen.line(HINT)
    return ask
