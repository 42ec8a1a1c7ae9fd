"""A program as text for people: address, bytes, source."""

from __future__ import annotations

from vpmu_emu.asm.program import Program

_WIDTH = 11


def listing(program: Program) -> str:
    """Address, bytes and statement of everything emitted, with labels.

    Returns:
        lines with a final newline; long data is cut after one row with the byte count.
    """
    labels: dict[int, list[str]] = {}
    for name, value in program.symbols.items():
        if name not in program.equates:
            labels.setdefault(value, []).append(name)
    bounds = {segment.addr: segment for segment in program.segments}
    out: list[str] = []
    for line in program.lines:
        if line.addr in bounds:
            segment = bounds.pop(line.addr)
            out.append(f"{segment.name}:")
        out += [f"{line.addr:08x}  {name}:" for name in labels.pop(line.addr, ())]
        data = program.read(line.addr, min(line.size, _WIDTH))
        shown = data.hex(" ")
        if line.size > _WIDTH:
            shown = f"{data[: _WIDTH - 3].hex(' ')} ..{line.size:5}"
        out.append(f"{line.addr:08x}  {shown:<{3 * _WIDTH}} {line.line:5}  {line.text}")
    out += [f"{addr:08x}  {name}:" for addr in sorted(labels) for name in labels[addr]]
    if program.equates:
        out.append("equates:")
        out += [f"{value & (1 << 64) - 1:#18x}  {n}" for n, value in program.equates.items()]
    return "\n".join(out) + "\n"
