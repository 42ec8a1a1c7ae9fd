"""Prepares compiled code: a faster way to what the first run would compile by itself.

numba finds out the argument types of a function from its caller, so by itself it can only go down
from the entry, in one process. `_signatures.json` remembers those types (`vpmu build --record`
writes it); with it, two worker processes go up from the leaves: a function is ready once all that it
calls are on the disk. The file is a hint. What it lacks, or has wrong, the last step compiles: one
tiny guest in each mode.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from vpmu_emu import process
from vpmu_emu.errors import VpmuError

SIGNATURES = Path(__file__).with_name("_signatures.json")
WORKERS = 2

Progress = Callable[[int, int, str], None]


class Worker:
    """A process that compiles one function at a time; speaks JSON lines, and ends with its parent."""

    def __init__(self, inbox: SimpleQueue[tuple[Worker, list[Any]]]) -> None:
        self.process = process.start("vpmu_emu.build:work", text=True)
        self._inbox = inbox
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._inbox.put((self, json.loads(line)))
        self._inbox.put((self, ["gone", "", f"exit status {self.process.wait()}"]))

    def send(self, *message: Any) -> None:
        """Give the process something to do."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is gone, and its reader says so
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()

    def close(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def load_signatures() -> dict[str, Any]:
    """What the last `record` found: {"roots": {mode: [name]}, "functions": {name: [type]}}."""
    if not SIGNATURES.is_file():
        return {"roots": {}, "functions": {}}
    loaded: dict[str, Any] = json.loads(SIGNATURES.read_text(encoding="utf-8"))
    return loaded


def modes() -> tuple[str, ...]:
    """The modes that can be built."""
    from vpmu_emu.tables.modes import mode_names

    return mode_names()


def is_built(mode: str) -> bool:
    """Whether `build` prepared `mode` for these sources, tables and versions."""
    from vpmu_emu import _jit

    return not _jit.COMPILES or _mark(mode).exists()


def _mark(mode: str) -> Path:
    from vpmu_emu import _jit

    return _jit.folder("vpmu_emu.system") / mode


def _set_mark(mode: str) -> None:
    with contextlib.suppress(OSError):  # the disk is full: the next run looks again
        _mark(mode).touch()


def comes_with_package(mode: str) -> bool:
    """Whether the package brought compiled code for `mode`, which is to be finished for this processor."""
    from vpmu_emu import _jit
    from vpmu_emu._jit import shipped

    return _jit.COMPILES and shipped.has(load_signatures()["roots"].get(mode, []))


def why_compiled() -> str:
    """What is wrong with the compiled code that the package brought, or did not bring."""
    from vpmu_emu._jit import shipped

    return shipped.why_not() or "the compiled code that came with this package lacks it"


def finish(wanted: Sequence[str], progress: Progress = lambda *_: None) -> list[str]:
    """Make those of the modes `wanted` ready that came with the package; the others, for `build`.

    `progress` is called with (entries done, entries in all, name of one just begun).
    """
    from vpmu_emu import _jit

    hints = load_signatures()["roots"]
    roots = {mode: hints[mode] for mode in wanted if comes_with_package(mode)}
    names = list(dict.fromkeys(name for names in roots.values() for name in names))
    _import(names)
    finished = set()
    for done, name in enumerate(names):
        progress(done + 1, len(names), name.split(":")[1])
        if name in _jit.functions and _jit.functions[name].finish():
            finished.add(name)
    ready = [mode for mode, names in roots.items() if finished.issuperset(names)]
    for mode in ready:
        _set_mark(mode)
    return [mode for mode in wanted if mode not in ready]


def prepare(modes: Sequence[str]) -> None:
    """Make ready what is missing for `modes`, without a word."""
    left = finish([mode for mode in modes if not is_built(mode)])
    if left:
        build(left)


def build(
    wanted: Sequence[str], progress: Progress = lambda *_: None, workers: int = WORKERS
) -> int:
    """Compile what runs in the modes `wanted` need.

    Args:
        wanted: names of modes.
        progress: called with (functions done, functions in all, name of one just begun).
        workers: processes.

    Returns:
        How many functions were considered.
    """
    from vpmu_emu import _jit

    if not _jit.COMPILES:
        return 0
    hints = load_signatures()
    specs: dict[str, list[Any]] = hints["functions"]
    roots = [name for mode in wanted for name in hints["roots"].get(mode, [])]
    _import(roots)
    graph = _reachable(name for name in roots if name in _jit.functions)
    total = len(graph)
    order = _by_critical_path(graph)
    done = 0
    inbox: SimpleQueue[tuple[Worker, list[Any]]] = SimpleQueue()
    pool = [Worker(inbox) for _ in range(max(1, workers))]
    try:
        waiting = {name: set(graph[name]) for name in order}
        for name in order:
            if name not in specs:  # unknown types: its callers compile it
                del waiting[name]
                for others in waiting.values():
                    others.discard(name)
        idle = list(pool)
        busy = 0
        while waiting or busy:
            ready = [name for name in order if name in waiting and not waiting[name]]
            while idle and ready:
                name = ready.pop(0)
                del waiting[name]
                idle.pop().send("compile", name, specs[name])
                busy += 1
                done += 1
                progress(done, total, name.split(":")[1])
            worker, (what, name, text) = inbox.get()
            if what == "gone":
                raise VpmuError(f"a compiling process ended early ({text})")
            busy -= 1
            idle.append(worker)
            for others in waiting.values():
                others.discard(name)
        # One tiny guest in each mode: proves the build, and compiles what the hints lack.
        for worker, mode in zip(pool * len(wanted), wanted, strict=False):
            worker.send("warm", mode, None)
            busy += 1
        while busy:
            worker, (what, name, text) = inbox.get()
            if what == "start":
                if name in graph or not graph:
                    done = min(done + 1, total) if total else done + 1
                    progress(done, total, name.split(":")[1])
                continue
            if what != "done":
                raise VpmuError(f"mode {name} does not build: {text}")
            _set_mark(name)
            busy -= 1
        pool[0].send("regions", "", None)  # what native code of guests is made with
        what, name, text = inbox.get()[1]
        if what != "done":
            raise VpmuError(f"what native code is made with does not build: {text}")
    finally:
        for worker in pool:
            worker.close()
    return total


def weigh(mode: str) -> dict[str, int]:
    """What `mode` compiles: functions, inlined ones, source lines, functions on the disk."""
    from vpmu_emu import _jit

    roots = load_signatures()["roots"].get(mode, [])
    _import(roots)
    graph = _reachable(name for name in roots if name in _jit.functions)
    return {
        "functions": len(graph),
        "inlined": sum(name in _jit.inlined for name in graph),
        "lines": sum(map(_jit.source_lines, graph)),
        "cached": sum(map(_jit.is_cached, graph)),
    }


def record(wanted: Sequence[str]) -> dict[str, Any]:
    """Compile the modes `wanted` and write the argument types found to `_signatures.json`.

    Raises:
        VpmuError: a mode that does not run.
    """
    from vpmu_emu import _jit

    hints = load_signatures()
    for mode in wanted:
        # A process of its own: what it has compiled or loaded is what this mode calls.
        inbox: SimpleQueue[tuple[Worker, list[Any]]] = SimpleQueue()
        worker = Worker(inbox)
        worker.send("warm", mode, None)
        while (answer := inbox.get()[1])[0] == "start":
            pass
        worker.close()
        if answer[0] != "done":
            raise VpmuError(f"mode {mode} does not build: {answer[2]}")
        hints["roots"][mode] = answer[2].split()
    known = {mode: names for mode, names in hints["roots"].items() if mode in modes()}
    _import(name for names in known.values() for name in names)
    # An entry that has another name now, of a mode that was not recorded again, is an old hint as well.
    roots = {mode: [name for name in names if name in _jit.functions] for mode, names in known.items()}
    found = {}
    for name in sorted(_reachable(n for names in roots.values() for n in names)):
        kinds = _jit.cached_signatures(name)
        if len(kinds) == 1:
            found[name] = [_jit.encode_type(kind) for kind in kinds[0]]
        elif not kinds and name in hints["functions"]:  # it came in the linked file of its entry
            found[name] = hints["functions"][name]
    lines = [f"{json.dumps(name)}: {json.dumps(spec)}" for name, spec in found.items()]
    modes_text = ",\n".join(f"{json.dumps(m)}: {json.dumps(n)}" for m, n in sorted(roots.items()))
    text = '{"roots": {\n' + modes_text + '\n}, "functions": {\n' + ",\n".join(lines) + "\n}}\n"
    SIGNATURES.write_text(text, encoding="utf-8")
    return load_signatures()


def _import(names: Iterable[str]) -> None:
    for module in sorted({name.split(":")[0] for name in names}):
        try:
            importlib.import_module(module)
        except ModuleNotFoundError:  # an old hint
            continue


def _reachable(roots: Iterable[str]) -> dict[str, frozenset[str]]:
    from vpmu_emu import _jit

    graph: dict[str, frozenset[str]] = {}
    todo = list(roots)
    while todo:
        name = todo.pop()
        if name not in graph:
            graph[name] = _jit.callees(name)
            todo.extend(graph[name])
    return graph


def _by_critical_path(graph: dict[str, frozenset[str]]) -> list[str]:
    # Longest way up to an entry first, counted in lines, so that no process waits at the end.
    from vpmu_emu import _jit

    callers: dict[str, set[str]] = {name: set() for name in graph}
    for name, targets in graph.items():
        for target in targets:
            callers[target].add(name)
    length: dict[str, int] = {}

    def above(name: str) -> int:
        if name not in length:
            length[name] = 0  # a cycle would be recursion, which compiled code does not have
            own = _jit.source_lines(name)
            length[name] = own + max((above(caller) for caller in callers[name]), default=0)
        return length[name]

    return sorted(graph, key=lambda name: (-above(name), name))


def warm(mode: str, cores: int = 1) -> None:
    """Run the smallest guest; all that `mode` may call is compiled with it."""
    from vpmu_emu.asm import assemble
    from vpmu_emu.system import System

    system = System(assemble("hlt", "<empty>"), vpmu=mode, cores=cores, ram=2, max_insns=10)
    system.result(system.run())


def work() -> None:
    """What a worker process does until its parent ends it, or is gone."""
    from vpmu_emu import _jit

    outlet = process.answers()

    def answer(*message: Any) -> None:
        outlet.write(json.dumps(message).encode() + b"\n")
        outlet.flush()

    for line in process.orders(lambda: iter(sys.stdin)):
        what, name, spec = json.loads(line)
        try:
            if what == "compile":
                importlib.import_module(name.split(":")[0])
                seconds = _jit.compile_for(name, spec)
                answer("done", name, f"{seconds:.3f}")
            elif what == "regions":
                from vpmu_emu.machine.translate.translator import make_parts

                make_parts(compiles=True)
                answer("done", name, "")
            else:
                with _jit.compile_clock(lambda function: answer("start", function, "")):
                    warm(name)
                answer("done", name, " ".join(_jit.called_entries()))
        except Exception as error:  # a wrong hint costs time, never the build
            answer("failed", name, f"{type(error).__name__}: {error}")
