"""A program as text for people: address, bytes, source."""

from __future__ import annotations

from collections.abc import Iterator

from vpmu_emu.asm.disassemble import disassemble
from vpmu_emu.asm.program import Line, Program

_WIDTH = 11


def instructions(program: Program) -> Iterator[Line]:
    """Lines of kind "insn": those that were assembled, or what an executable's bytes say."""
    if any(line.kind == "insn" for line in program.lines):
        yield from (line for line in program.lines if line.kind == "insn")
        return
    for segment in program.segments:
        if segment.exec:
            places = {*program.symbols.values(), *(line.addr for line in program.lines)}
            for found in disassemble(segment.data, segment.vaddr, places):
                line = program.line_at(found.addr)
                file, number = (line.file, line.line) if line else ("", 0)
                yield Line(found.addr, found.size, file, number, found.text, "insn")


def _shown(program: Program) -> Iterator[Line]:
    if not any(segment.exec for segment in program.segments) or any(
        line.kind == "insn" for line in program.lines
    ):
        yield from program.lines
        return
    place = None
    for line in instructions(program):
        if line.file and (line.file, line.line) != place:
            place = line.file, line.line
            source = program.line_at(line.addr)
            yield Line(line.addr, 0, line.file, line.line, source.text if source else "", "code")
        yield line


def listing(program: Program) -> str:
    """Address, bytes and statement of everything emitted, with labels; of an executable, its code.

    Returns:
        lines with a final newline; long data is cut after one row with the byte count.
    """
    labels: dict[int, list[str]] = {}
    for name, value in program.symbols.items():
        if name not in program.equates:
            labels.setdefault(value, []).append(name)
    bounds = {segment.vaddr: segment for segment in program.segments}
    out: list[str] = []
    for line in _shown(program):
        if line.addr in bounds:
            segment = bounds.pop(line.addr)
            out.append(f"{segment.name}:")
        out += [f"{line.addr:08x}  {name}:" for name in labels.pop(line.addr, ())]
        if line.kind == "code":
            out.append(f"          {line.file}:{line.line}: {line.text}")
            continue
        data = program.read(program.physical(line.addr), min(line.size, _WIDTH))
        shown = data.hex(" ")
        if line.size > _WIDTH:
            shown = f"{data[: _WIDTH - 3].hex(' ')} ..{line.size:5}"
        number = line.line or ""
        out.append(f"{line.addr:08x}  {shown:<{3 * _WIDTH}} {number:5}  {line.text}")
    out += [f"{addr:08x}  {name}:" for addr in sorted(labels) for name in labels[addr]]
    if program.equates:
        out.append("equates:")
        out += [f"{value & (1 << 64) - 1:#18x}  {n}" for n, value in program.equates.items()]
    return "\n".join(out) + "\n"
