"""Which code is native when: compiled code asks, a thread makes regions, and no result differs.

A direct branch that was taken often asks for its target. Between two slices of a run the region there is
collected; if its code is neither in this process nor on the disk, a thread makes it while the interpreter
goes on. When it is there, a micro-op that calls it takes the place of the target, as long as the decoded
code is still what it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections import Counter
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from vpmu_emu import _jit
from vpmu_emu._jit import native, region, shipped
from vpmu_emu.machine import ops
from vpmu_emu.machine.alu import O_COMPUTE
from vpmu_emu.machine.decode import BLANK
from vpmu_emu.machine.state import N_NATIVE_PAGES
from vpmu_emu.machine.translate import code
from vpmu_emu.machine.translate.blocks import Block, collect
from vpmu_emu.machine.translate.step import SETTLE

PATIENCE = 0.05  # seconds: shorter runs are over before it pays
SHARE = 0.05  # of the run that looking for regions may take
MOST_DROPS = 3  # stores into the native code of a page, before it is left to the interpreter
PAGE = 4096
ROOM = 128  # micro-ops that a block needs at the most
MOST_REGIONS = 2000  # of a process
MOST_FILES = 4000  # on the disk, when a process begins to add to them
STEP = "vpmu_emu.machine.translate.step:step"
_GENERAL = "vpmu_emu.machine.alu:execute_general"
_SYSTEM = "vpmu_emu.machine.privileged:execute_system"
_ONWARD = "vpmu_emu.machine.decode:next_region"
ARMS = (*range(len(ops.HOT)), SETTLE, *range(ops.COLD_BASE, O_COMPUTE + 1))  # of `step`
_CORE, _ENGINE, _UOP, _WORDS = (
    f"vpmu_emu.machine.state:{name}" for name in ("CORE", "ENGINE", "UOP", "WORDS")
)
_BYTES = ["array", "uint8", [1, "C", False, True]]
_ARGUMENTS = [_CORE, _BYTES, _ENGINE, _UOP]
CALLED: dict[str, list[Any]] = {
    _GENERAL: [*_ARGUMENTS, "int64"],
    _SYSTEM: _ARGUMENTS,
    _ONWARD: [_CORE, _ENGINE],
}
STEP_ARGUMENTS = [_CORE, _BYTES, _ENGINE, _WORDS, _UOP, "int64", "int64"]


def _folder() -> Path:
    import vpmu_emu.machine.privileged
    import vpmu_emu.machine.translate.step  # noqa: F401  (both declare what is compiled)

    return _jit.folder(__name__)


def make_parts(*, compiles: bool) -> region.Parts | None:
    """What regions are made with: from the disk, of what came with the package, or compiled.

    Args:
        compiles: numba may be asked, which takes half a minute; else None where it would have to be.
    """
    path = _folder() / "parts.code"
    with contextlib.suppress(OSError, native.UnusableError):
        return region.link_parts(path.read_bytes())
    with contextlib.suppress(KeyError, RuntimeError, native.UnusableError):
        parts = region.link_parts(_shipped())
        native.write(path, _shipped())
        return parts
    if not compiles:
        return None
    from vpmu_emu._jit import compiler

    return region.link_parts(compiler.parts(STEP, ARMS, CALLED, STEP_ARGUMENTS, path))


@cache
def _shipped() -> bytes:
    names = (STEP, *CALLED)
    symbols = {name: shipped.symbol(name) for name in names}
    module = region.apart(str(shipped.alone(STEP)), symbols[STEP], ARMS)
    return region.pieces(symbols, module, [native.target().emit_object(shipped.module(*names))])


def _make_room(folder: Path) -> None:
    """Of very many regions on the disk those go that were made first."""
    found = sorted((path.stat().st_mtime, path) for path in folder.iterdir())
    for _, path in found[: max(0, len(found) - MOST_FILES)]:
        path.unlink(missing_ok=True)


class Library:
    """The native code of this process, by what it was made of."""

    def __init__(self) -> None:
        self.parts: region.Parts | None = None
        self.addresses: dict[str, int | None] = {}  # None: there is none, and there will be none
        self.todo: SimpleQueue[tuple[str, list[Block], Any]] = SimpleQueue()
        self.waiting: set[str] = set()
        self._thread: threading.Thread | None = None
        self._kept = False  # one was written
        self._lock = threading.Lock()

    @staticmethod
    def key(blocks: list[Block]) -> str:
        """The name of a region: of the same bytes at the same address it is the same."""
        content = hashlib.sha256()
        for block in blocks:
            content.update(repr((block.place, block.taken, block.goes_on)).encode())
            for one in block.instructions:
                content.update(one.data)
        return f"region_{content.hexdigest()[:32]}"

    def make(self, key: str, blocks: list[Block], *, compiles: bool = False) -> int | None:
        """The address of a region, linked or translated now; None if there cannot be one."""
        with self._lock:
            if key in self.addresses:
                return self.addresses[key]
            if len(self.addresses) >= MOST_REGIONS:
                return None
            if self.parts is None:
                self.parts = make_parts(compiles=compiles)
            if self.parts is None:
                return None
            path = _folder() / "regions" / f"{key}.code"
            made = self._load(key, path)
            if made is None:
                made = self._translate(key, blocks, path)
            self.addresses[key] = made
            return made

    def _load(self, key: str, path: Path) -> int | None:
        assert self.parts is not None
        with contextlib.suppress(OSError, native.UnusableError):
            data = path.read_bytes()
            if hashlib.sha256(memoryview(data)[32:]).digest() == data[:32]:
                return region.link_region(self.parts, data[32:], key)
        return None

    def _translate(self, key: str, blocks: list[Block], path: Path) -> int | None:
        assert self.parts is not None
        symbols = self.parts.symbols
        callee = code.Callee(symbols[STEP], symbols[_GENERAL], symbols[_SYSTEM], symbols[_ONWARD])
        text = code.function(key, callee, blocks)
        made = region.compile_region(self.parts, text, key)
        with contextlib.suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            if not self._kept:
                _make_room(path.parent)
        self._kept = True
        native.write(path, hashlib.sha256(made).digest() + made)
        return region.link_region(self.parts, made, key)

    def ask(self, key: str, blocks: list[Block], done: Any) -> None:
        """Have the thread make it; `done` is called there."""
        if key in self.waiting:
            return
        self.waiting.add(key)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="translator", daemon=True)
            self._thread.start()
        self.todo.put((key, blocks, done))

    def _work(self) -> None:
        while True:
            key, blocks, done = self.todo.get()
            try:
                self.addresses.setdefault(key, self.make(key, blocks))
            except Exception:
                self.addresses[key] = None
            self.waiting.discard(key)
            done()


LIBRARY = Library()


class Translator:
    """Native code of one machine.

    Args:
        E: its engine record.
        hot: how often a direct branch is taken before its target is asked for.
        waits: translate at once, instead of in a thread.
    """

    def __init__(self, E: Any, *, hot: int, waits: bool) -> None:
        self.E = E
        self.waits = waits
        self.regions = 0  # that were put into decoded code
        self._asked: dict[int, tuple[str, list[Block], int, int]] = {}  # by micro-op; bank, generation
        self._inside: set[tuple[int, int]] = set()  # addresses in regions, and their bank,
        self._generation = -1  # of this generation of decoded code
        self._drops = 0
        self._written: Counter[int] = Counter()  # stores into native code, by page
        self._seconds = 0.0
        E.hot_after = hot

    def look(self, run: float) -> None:
        """Between two slices: take what was asked for, put what is ready into decoded code.

        Args:
            run: seconds that the run has taken.
        """
        E = self.E
        if not int(E.n_hot) and not self._asked:
            return
        if not self.waits and (run < PATIENCE or self._seconds > PATIENCE + SHARE * run):
            return  # compiled code asks no more until it is heard
        begin = time.perf_counter()
        generation = int(E.generation)
        if generation != self._generation:
            self._generation = generation
            self._inside.clear()
        for k in range(self._drops, int(E.native_drops)):
            self._written[int(E.native_page[k % N_NATIVE_PAGES])] += 1
        self._drops = int(E.native_drops)
        for k in range(int(E.n_hot)):
            n, bank = int(E.hot_uop[k]), int(E.hot_bank[k])
            if int(E.hot_generation[k]) == generation:
                self._take(n, bank, generation)
        E.n_hot = 0
        for n, (key, blocks, bank, then) in list(self._asked.items()):
            if then != generation:
                del self._asked[n]
            elif key in LIBRARY.addresses:
                del self._asked[n]
                self._put(n, key, blocks, bank)
        self._seconds += time.perf_counter() - begin

    def _take(self, n: int, bank: int, generation: int) -> None:
        if (int(self.E.uops[n]["rip"]), bank) in self._inside:
            return
        blocks = collect(self.E, n, bank)
        pages = {one.rip & -PAGE for block in blocks for one in block.instructions}
        if not blocks or any(self._written[page] > MOST_DROPS for page in pages):
            return
        key = Library.key(blocks)
        if self.waits:
            LIBRARY.make(key, blocks, compiles=True)
        if key in LIBRARY.addresses:
            self._put(n, key, blocks, bank)
            return
        self._asked[n] = key, blocks, bank, generation
        LIBRARY.ask(key, blocks, self._call)

    def _call(self) -> None:
        self.E.t_slice = 0

    def _put(self, n: int, key: str, blocks: list[Block], bank: int) -> None:
        """A micro-op that calls the region comes before micro-op n, for all that lead there."""
        address = LIBRARY.addresses[key]
        E = self.E
        uops = E.uops
        at = int(E.n_uops)
        if address is None or at + ROOM >= BLANK or uops[n]["op"] == ops.OP_REGION:
            return
        if any(uops[one.number]["op"] != one.op for block in blocks for one in block.instructions):
            return  # something was stored there while it was made
        E.n_uops = at + 1
        uops[at] = uops[n].copy()
        u = uops[at]
        u["op"] = ops.OP_REGION
        u["imm"] = address
        u["disp"] = blocks[0].span
        u["target"] = n
        u["lanes1"] = u["lanes2"] = 0
        u["cost"] = 0
        part = uops["target"][1:at]
        part[(part == n) & (uops["op"][1:at] != ops.OP_REGION)] = at
        E.map_uop[E.map_uop == n] = at
        for block in blocks:
            for one in block.instructions:
                E.code_native[one.number] = 1
        self._inside |= {(block.rip, bank) for block in blocks if not block.place[1]}
        self.regions += 1
