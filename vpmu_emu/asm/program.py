"""An assembled program: bytes at addresses, names, and the source line of every one of them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import attrs

from vpmu_emu.errors import ConfigError


@attrs.frozen
class Segment:
    """Bytes to load.

    Attributes:
        addr: physical and virtual address.
        data: the bytes; zeros for .bss.
        name: section name.
        exec, write: permissions.
    """

    addr: int
    data: bytes = attrs.field(repr=lambda data: f"<{len(data)} bytes>")
    name: str
    exec: bool
    write: bool


@attrs.frozen
class Line:
    """What one statement became.

    Attributes:
        addr, size: bytes of the image; a size of 0 emits nothing.
        file, line: the source; inside a macro, the outermost call.
        text: the statement, as a macro expanded it.
        kind: "insn" or "data".
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
    """An assembled program.

    Attributes:
        name: of the source.
        entry: address of `_start`, else the first byte of .text.
        segments: in address order, page-aligned.
        symbols: labels and absolute equates.
        equates: absolute `.equ` names only.
        lines: one per emitted instruction or datum, in address order.
        source: lines of every file that was read.
        expectations: `#:` lines in order.
    """

    name: str
    entry: int
    segments: tuple[Segment, ...]
    symbols: dict[str, int]
    equates: dict[str, int]
    lines: tuple[Line, ...] = attrs.field(repr=lambda lines: f"<{len(lines)} lines>")
    source: dict[str, list[str]] = attrs.field(repr=False)
    expectations: tuple[Expectation, ...] = ()
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

    def insns(self, a: int | str, b: int | str) -> int:
        """Number of instructions assembled in [a, b).

        Raises:
            ConfigError: no such label.
        """
        first, last = self.address(a), self.address(b)
        return max(0, bisect_left(self._insns, last) - bisect_left(self._insns, first))

    def line_at(self, addr: int) -> Line | None:
        """The statement whose bytes hold `addr`."""
        index = bisect_right(self._starts, addr) - 1
        if index < 0:
            return None
        line = self.lines[index]
        return line if line.addr <= addr < line.addr + line.size else None

    def read(self, addr: int, size: int) -> bytes:
        """Bytes of the image; fewer at the end of a segment."""
        for segment in self.segments:
            if segment.addr <= addr < segment.addr + len(segment.data):
                offset = addr - segment.addr
                return segment.data[offset : offset + size]
        return b""
