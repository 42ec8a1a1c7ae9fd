"""A program: bytes at addresses, names, and the source line of every one of them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from pathlib import Path

import attrs

from vpmu_emu.asm.disassemble import disassemble_one
from vpmu_emu.asm.errors import did_you_mean
from vpmu_emu.errors import ConfigError, LoadError


@attrs.frozen
class Segment:
    """Bytes to load.

    Attributes:
        addr: physical address.
        data: the bytes; zeros for .bss.
        name: section name.
        exec, write: permissions.
        vaddr: the address that symbols in it have; another one only where a linker said so.
    """

    addr: int
    data: bytes = attrs.field(repr=lambda data: f"<{len(data)} bytes>")
    name: str
    exec: bool
    write: bool
    vaddr: int = attrs.field(default=attrs.Factory(lambda self: self.addr, takes_self=True))


@attrs.frozen
class Line:
    """What one statement became.

    Attributes:
        addr, size: bytes of the image; a size of 0 emits nothing.
        file, line: the source; inside a macro, the outermost call.
        text: the statement, as a macro expanded it; of a compiler's code, the source line.
        kind: "insn", "data", or "code" for all instructions in a row that one source line became.
    """

    addr: int
    size: int
    file: str
    line: int
    text: str
    kind: str


@attrs.frozen
class Expectation:
    """A `#:` line as written, without the mark."""

    file: str
    line: int
    text: str


@attrs.frozen(eq=False)
class Program:
    """An assembled or loaded program.

    Attributes:
        name: of the source or the executable.
        entry: address of `_start`, else the first byte of .text; what an executable says.
        segments: in address order; page-aligned if assembled.
        symbols: labels and absolute equates.
        equates: absolute `.equ` names only.
        lines: in address order; one per emitted instruction or datum if assembled.
        source: lines of every file that was read.
        expectations: `#:` lines in order.
        frames: call frame information of an executable: section to address and contents.
        notes: what a user should know of it, a sentence each.
        defsym: symbols that were defined before its first line.
        text: what was assembled, None of an executable.
        include: folders of its `.include`.
        entered: where `entered_at` has it begin, None where it begins by itself.
    """

    name: str
    entry: int
    segments: tuple[Segment, ...]
    symbols: dict[str, int]
    equates: dict[str, int]
    lines: tuple[Line, ...] = attrs.field(repr=lambda lines: f"<{len(lines)} lines>")
    source: dict[str, list[str]] = attrs.field(repr=False)
    expectations: tuple[Expectation, ...] = ()
    notes: tuple[str, ...] = ()
    frames: Mapping[str, tuple[int, bytes]] = attrs.field(factory=dict, repr=False)
    defsym: Mapping[str, int] = attrs.field(factory=dict)
    text: str | None = attrs.field(default=None, repr=False)
    include: tuple[Path, ...] = ()
    entered: int | str | None = None
    _starts: tuple[int, ...] = attrs.field(init=False, repr=False)
    _insns: tuple[int, ...] = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_starts", tuple(line.addr for line in self.lines))
        instructions = tuple(line.addr for line in self.lines if line.kind == "insn")
        object.__setattr__(self, "_insns", instructions)

    def address(self, where: int | str) -> int:
        """A label or number as an address.

        Raises:
            ConfigError: no such label.
        """
        if isinstance(where, int):
            return where
        if where not in self.symbols:
            key = "label"
            msg = f"{self.name} has no label {where!r}"
            raise ConfigError(key, msg, ", ".join(sorted(self.symbols)[:20]))
        return self.symbols[where]

    def physical(self, addr: int) -> int:
        """Where the byte lies that the program calls `addr`, before it turns paging on."""
        for segment in self.segments:
            if segment.vaddr <= addr < segment.vaddr + len(segment.data):
                return addr - segment.vaddr + segment.addr
        return addr

    def holds(self, addr: int) -> bool:
        """Whether a byte of the program has this address, or lies there before paging is on."""
        return any(
            start <= addr < start + len(segment.data)
            for segment in self.segments
            for start in (segment.addr, segment.vaddr)
        )

    def entered_at(self, where: int | str) -> Program:
        """The same program with another entry: an address, as a number or its text, or a symbol.

        Raises:
            LoadError: no such symbol.
        """
        try:
            addr = int(where, 0) if isinstance(where, str) else where
        except ValueError:
            name = str(where)
            if name not in self.symbols:
                near = did_you_mean(name, self.symbols)
                hint = near or ("" if self.symbols else "it has no symbol table; give an address")
                msg = f"{self.name}: --entry: no symbol {name!r}" + (f"; {hint}" if hint else "")
                raise LoadError(msg) from None
            addr = self.symbols[name]
        return attrs.evolve(self, entry=self.physical(addr), entered=where)

    def insns(self, a: int | str, b: int | str) -> int:
        """Number of instructions in [a, b).

        Raises:
            ConfigError: no such label, or bytes that are no instruction of the table.
        """
        first, last = self.address(a), self.address(b)
        if not self._insns and last > first:
            return self._decoded(first, last)
        return max(0, bisect_left(self._insns, last) - bisect_left(self._insns, first))

    def _decoded(self, first: int, last: int) -> int:
        # Of an executable only the bytes say where instructions begin.
        count, at = 0, first
        code = self.read(self.physical(first), last - first)
        while at < last:
            found = disassemble_one(code[at - first :][:15], at)
            if found is None:
                key = "insns"
                msg = f"{self.name}: no instruction of the emulated set at {at:#x}"
                raise ConfigError(key, msg)
            at += found.size
            count += 1
        return count

    def line_at(self, addr: int) -> Line | None:
        """The statement whose bytes hold `addr`."""
        index = bisect_right(self._starts, addr) - 1
        if index < 0:
            return None
        line = self.lines[index]
        return line if line.addr <= addr < line.addr + line.size else None

    def place(self, addr: int) -> str:
        """`file:line` of the statement there, or ""."""
        line = self.line_at(addr)
        return f"{line.file}:{line.line}" if line else ""

    def read(self, addr: int, size: int) -> bytes:
        """Bytes of the image; fewer at the end of a segment."""
        for segment in self.segments:
            if segment.addr <= addr < segment.addr + len(segment.data):
                offset = addr - segment.addr
                return segment.data[offset : offset + size]
        return b""
