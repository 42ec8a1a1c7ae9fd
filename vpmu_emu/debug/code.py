"""Code as it stands in memory, beside the source that it was made of."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator

import attrs

from vpmu_emu.asm.disassemble import Instruction, disassemble_one
from vpmu_emu.asm.program import Line, Program

LONGEST = 15  # bytes of an instruction
_FAR_BACK = 4096  # bytes that are decoded to find the instruction before an address

_LABELS = re.compile(r"^(?:[\w.$@]+: ?)+(?=.)")

Read = Callable[[int, int], bytes]


@attrs.frozen
class Row:
    """One instruction.

    Attributes:
        addr, code: its bytes as they are in memory.
        text: the statement of the source if memory still holds what it became, else what the bytes are.
        line: the source of the bytes, None if they have none.
        patched: memory is not what the source put there.
        target: where a direct branch goes or what a rip-relative operand is, None otherwise.
        plain: what the bytes are, "" if no instruction of the table.
    """

    addr: int
    code: bytes
    text: str
    line: Line | None
    patched: bool = False
    target: int | None = None
    plain: str = ""


def statement(line: Line) -> str:
    """The statement of a line with single spaces, without the labels before it."""
    return bare(line.text)


def bare(words: str) -> str:
    """A statement with single spaces, without the labels before it."""
    return _LABELS.sub("", " ".join(words.split()))


def decode(program: Program, read: Read, addr: int) -> Row | None:
    """The instruction at an address, None if there is no memory; what is none is one byte long."""
    code = read(addr, LONGEST)
    if not code:
        return None
    line = program.line_at(addr)
    insn = disassemble_one(code, addr)
    target = insn.target if insn is not None else None
    if line is not None and line.kind == "insn" and line.addr == addr:
        if program.read(addr, line.size) == code[: line.size]:
            plain = insn.text if insn is not None else ""
            return Row(addr, code[: line.size], statement(line), line, False, target, plain)
        return _of_bytes(insn, addr, code, line, True)
    size = insn.size if insn is not None else 1
    patched = line is not None and program.read(addr, size) != code[:size]
    return _of_bytes(insn, addr, code, line, patched)


def _of_bytes(
    insn: Instruction | None, addr: int, code: bytes, line: Line | None, patched: bool
) -> Row:
    if insn is None:
        return Row(addr, code[:1], "(not in the emulated instruction set)", line, patched)
    return Row(addr, code[: insn.size], insn.text, line, patched, insn.target, insn.text)


def following(program: Program, read: Read, addr: int) -> Iterator[Row]:
    """Instructions from an address on, to the end of memory."""
    while (row := decode(program, read, addr)) is not None:
        yield row
        addr += len(row.code)


def preceding(program: Program, read: Read, addr: int, count: int) -> list[Row]:
    """Up to `count` instructions that end where `addr` begins, as far as something says where one begins.

    x86 cannot be read backwards: it is read forwards from a line or a symbol of the program.
    """
    starts = sorted({line.addr for line in _code_lines(program, addr)} | _symbols(program))
    at = bisect_left(starts, addr) - 1
    found: list[Row] = []
    end = addr
    while at >= 0 and len(found) < count and end - starts[at] <= _FAR_BACK:
        rows = []
        for row in following(program, read, starts[at]):
            if row.addr >= end:
                break
            rows.append(row)
        if not rows or rows[-1].addr + len(rows[-1].code) != end:
            break
        found = rows + found
        end = starts[at]
        at -= 1
    return found[-count:] if count else []


def _code_lines(program: Program, addr: int) -> tuple[Line, ...]:
    last = bisect_right(program.lines, addr, key=lambda line: line.addr)
    first = bisect_left(program.lines, addr - _FAR_BACK, key=lambda line: line.addr)
    return tuple(line for line in program.lines[first:last] if line.kind != "data")


def _symbols(program: Program) -> set[int]:
    return {v for name, v in program.symbols.items() if name not in program.equates}


def name_of(program: Program, addr: int) -> str:
    """`symbol` or `symbol+N` for an address of the program, else ""."""
    if not program.holds(addr):
        return ""
    below = [
        (value, name) for name, value in program.symbols.items()
        if name not in program.equates and value <= addr
    ]  # fmt: skip
    if not below:
        return ""
    value, name = max(below)
    return name if value == addr else f"{name}+{addr - value}"


def source_line(program: Program, line: Line) -> str:
    """The line as it stands in its file, "" if the file is not here."""
    rows = program.source.get(line.file, [])
    return rows[line.line - 1].expandtabs(8).rstrip() if 0 < line.line <= len(rows) else ""
