"""A Program as an ELF file that objdump, GDB and QEMU read; written by hand, 64-bit little-endian."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vpmu_emu.asm import Program

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_ABSOLUTE = 0xFFF1


def to_elf(program: Program) -> bytes:
    """The image as an executable with one segment and section each, and a symbol table."""
    segments = [s for s in program.segments if s.data]
    names = ["", *(s.name or f".seg{i}" for i, s in enumerate(segments)), ".symtab", ".strtab"]
    shstr, shoff = _strings([*names, ".shstrtab"])
    symbols = sorted(program.symbols.items(), key=lambda item: item[1])
    strings, offsets = _strings(["", *(name for name, _ in symbols)])

    body = bytearray(_HEADER.size + _PROGRAM.size * len(segments))
    places = []
    for segment in segments:
        # The loader maps whole pages: offset and address agree modulo 4 KiB.
        body += bytes((segment.addr - len(body)) % 4096)
        places.append(len(body))
        body += segment.data
    table = bytearray(_SYMBOL.size)
    for name, value in symbols:
        inside = [
            i for i, s in enumerate(segments, 1) if s.addr <= value <= s.addr + len(s.data)
        ]
        home = inside[0] if inside and name not in program.equates else _ABSOLUTE
        kind = 0x12 if home != _ABSOLUTE and segments[home - 1].exec else 0x10
        table += _SYMBOL.pack(offsets[name], kind, 0, home, value, 0)
    body += bytes(-len(body) % 8)
    symbol_place = len(body)
    body += table
    string_place = len(body)
    body += strings
    shstr_place = len(body)
    body += shstr
    body += bytes(-len(body) % 8)
    sections = len(body)
    body += bytes(_SECTION.size)
    for segment, place, name in zip(segments, places, names[1:], strict=False):
        flags = 2 | (4 if segment.exec else 0) | (1 if segment.write else 0)
        body += _SECTION.pack(
            shoff[name], 1, flags, segment.addr, place, len(segment.data), 0, 0, 16, 0
        )
    link = len(segments) + 2
    body += _SECTION.pack(
        shoff[".symtab"], 2, 0, 0, symbol_place, len(table), link, 1, 8, _SYMBOL.size
    )
    body += _SECTION.pack(shoff[".strtab"], 3, 0, 0, string_place, len(strings), 0, 0, 1, 0)
    body += _SECTION.pack(shoff[".shstrtab"], 3, 0, 0, shstr_place, len(shstr), 0, 0, 1, 0)

    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    _HEADER.pack_into(
        body, 0, ident, 2, 62, 1, program.entry, _HEADER.size, sections, 0,
        _HEADER.size, _PROGRAM.size, len(segments), _SECTION.size, link + 2, link + 1,
    )  # fmt: skip
    for i, (segment, place) in enumerate(zip(segments, places, strict=True)):
        flags = 4 | (1 if segment.exec else 0) | (2 if segment.write else 0)
        size = len(segment.data)
        _PROGRAM.pack_into(
            body, _HEADER.size + i * _PROGRAM.size,
            1, flags, place, segment.addr, segment.addr, size, size, 4096,
        )  # fmt: skip
    return bytes(body)


def write_elf(program: Program, path: Path) -> None:
    """Write `to_elf(program)` to `path`."""
    path.write_bytes(to_elf(program))


def _strings(names: list[str]) -> tuple[bytes, dict[str, int]]:
    table = bytearray(b"\0")
    places = {"": 0}
    for name in names:
        if name not in places:
            places[name] = len(table)
            table += name.encode() + b"\0"
    return bytes(table), places
