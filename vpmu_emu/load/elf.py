"""A static ELF64 executable becomes a Program; what its headers claim is checked before it is used.

Only `struct` is needed here. Line numbers are DWARF and another module's work.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import attrs

from vpmu_emu.asm.program import Expectation, Line, Program, Segment
from vpmu_emu.errors import LoadError
from vpmu_emu.load.dwarf import LINE_SECTIONS, read_lines
from vpmu_emu.load.frames import FRAME_SECTIONS
from vpmu_emu.tables.ram import LOW_RAM_MIB

MAGIC = b"\x7fELF"
TOP = LOW_RAM_MIB << 20  # nothing can be loaded at or above
MOST = 1 << 28  # bytes of all segments together, zeros that the file does not have among them
EXPECTATIONS = ".vpmu"  # a section with the lines that a `.s` guest has behind `#:`

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_MACHINE = 62
_MACHINES = {
    2: "SPARC", 3: "32-bit x86", 8: "MIPS", 20: "PowerPC", 21: "64-bit PowerPC", 22: "S/390",
    40: "32-bit ARM", 183: "AArch64", 243: "RISC-V", 247: "BPF", 258: "LoongArch",
}  # fmt: skip
_KINDS = {
    0: ("has no type", "link it with gcc or ld"),
    1: ("is an object file", "link it: gcc -nostdlib -static -no-pie"),
    3: ("is position-independent or a shared library", "link it with -static -no-pie"),
    4: ("is a core dump", ""),
}
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_SHT_SYMTAB, _SHT_NOBITS = 2, 8
_SHN_UNDEF, _SHN_ABS, _SHN_XINDEX = 0, 0xFFF1, 0xFFFF
_STT_FUNC = 2  # the last of the types that name code or data
_SHF_COMPRESSED = 0x800
_MAX_UNPACKED = 1 << 26
_MAX_NAME = 4096
_MAX_SEGMENTS = 256
_MAX_SYMBOLS = 1 << 20


class _Bad(Exception):
    """Something wrong at a place in the file."""

    def __init__(self, place: str, message: str, hint: str = "") -> None:
        super().__init__(f"{place}: {message}" + (f"; {hint}" if hint else ""))


@attrs.frozen
class Section:
    """One entry of the section header table."""

    name: str
    kind: int
    flags: int
    addr: int
    data: bytes = attrs.field(repr=False)
    size: int
    link: int


def load_elf(data: bytes, name: str) -> Program:
    """The executable in `data` as the assembler would have given it.

    Segments lie at their physical addresses (`p_paddr`), as QEMU and boot loaders place them; symbols
    and lines keep the addresses that the program was linked for. An entry that names a virtual address
    of a segment that lies elsewhere is moved along with it, as QEMU does.

    Args:
        data: the file.
        name: what errors call it.

    Raises:
        LoadError: not a static x86-64 executable, or damaged; says where.
    """
    try:
        header = _header(data)
        segments = _segments(data, *header[1:3])
        sections = _sections(data, *header[3:])
        named = {s.addr: s.name for s in sections if s.flags & 2 and s.size}
        segments = [attrs.evolve(s, name=named.get(s.vaddr, s.name)) for s in segments]
        symbols, equates = _symbols(sections)
        tables = _debugging(sections)
    except _Bad as error:
        raise LoadError(f"{name}: {error}") from None
    rows, source, notes = read_lines(tables, segments, name)
    program = Program(
        name=name,
        entry=header[0],
        segments=tuple(segments),
        symbols=symbols,
        equates=equates,
        lines=_placed(rows, segments),
        source=source,
        expectations=tuple(_expectations(sections, name)),
        notes=notes,
        frames={s.name: (s.addr, _unpacked(s)) for s in sections if s.name in FRAME_SECTIONS and s.data},
    )
    return attrs.evolve(program, entry=program.physical(header[0]))


# --- headers --------------------------------------------------------------------------------------


def _header(data: bytes) -> tuple[int, int, int, int, int, int]:
    """(entry, program header offset and count, section header offset, count, name section)."""
    place = "ELF header"
    if len(data) > 5 and data[:4] == MAGIC:
        if data[4] == 1:
            machine = int.from_bytes(data[18:20], "little")
            what = _MACHINES.get(machine, "x86-64 with 32-bit pointers" if machine == 62 else "")
            raise _Bad(place, f"a 32-bit file{f' ({what})' if what else ''}", "give an ELF64 x86-64 one")
        if data[4] != 2:
            raise _Bad(place, f"class {data[4]} is not ELF64")
        if data[5] == 2:
            raise _Bad(place, "big-endian; x86-64 is little-endian")
        if data[5] != 1:
            raise _Bad(place, f"byte order {data[5]} is unknown")
    if len(data) < _HEADER.size:
        raise _Bad(place, f"the file ends after {len(data)} of {_HEADER.size} bytes")
    (_, kind, machine, version, entry, phoff, shoff, _, _, phentsize, phnum, shentsize, shnum,
     shstrndx) = _HEADER.unpack_from(data)  # fmt: skip
    if machine != _MACHINE:
        raise _Bad(place, f"made for {_MACHINES.get(machine, f'machine {machine}')}, not for x86-64")
    if kind != 2:
        message, hint = _KINDS.get(kind, (f"has type {kind:#x}, not an executable's", ""))
        raise _Bad(place, message, hint)
    if version != 1:
        raise _Bad(place, f"version {version} is not 1")
    if not phnum:
        raise _Bad(place, "there is no program header, so nothing to load")
    if phentsize != _PROGRAM.size:
        raise _Bad(place, f"a program header of {phentsize} bytes, not {_PROGRAM.size}")
    if phnum == 0xFFFF:
        raise _Bad(place, "more than 65534 program headers")
    _inside(data, phoff, phnum * phentsize, "program header table")
    if not shoff:
        shnum = 0
    elif shentsize != _SECTION.size and shnum:
        raise _Bad(place, f"a section header of {shentsize} bytes, not {_SECTION.size}")
    _inside(data, shoff, shnum * _SECTION.size, "section header table")
    if shnum and shstrndx >= shnum:
        raise _Bad(place, f"section names are in section {shstrndx} of {shnum}")
    return entry, phoff, phnum, shoff, shnum, shstrndx


def _inside(data: bytes, offset: int, size: int, what: str) -> None:
    if offset + size > len(data):
        end = offset + size
        raise _Bad(what, f"reaches to offset {end:#x}, the file ends at {len(data):#x} (truncated?)")


def _segments(data: bytes, offset: int, count: int) -> list[Segment]:
    found: list[Segment] = []
    total = 0
    rows = list(_PROGRAM.iter_unpack(data[offset : offset + count * _PROGRAM.size]))
    # The ABI leaves p_paddr open where physical addresses mean nothing; some linkers write 0 there.
    blank = all(row[4] == 0 for row in rows if row[0] == _PT_LOAD)
    for i, (kind, flags, at, vaddr, paddr, in_file, size, _) in enumerate(rows):
        place = f"program header {i}"
        if kind in (_PT_INTERP, _PT_DYNAMIC):
            raise _Bad(place, "needs a dynamic linker, which there is not", "link it with -static -no-pie")
        if kind != _PT_LOAD or not size:
            continue
        paddr = vaddr if blank else paddr
        place += f" (address {paddr:#x})"
        if in_file > size:
            raise _Bad(place, f"{in_file:#x} bytes of the file for {size:#x} bytes of memory")
        _inside(data, at, in_file, place)
        if paddr + size > TOP:
            raise _Bad(place, f"{size:#x} bytes at {paddr:#x} reach over the top of memory, {TOP:#x}",
                       "link it lower: -Wl,-Ttext=0x100000")  # fmt: skip
        if vaddr + size > 1 << 64:
            raise _Bad(place, f"{size:#x} bytes at virtual address {vaddr:#x} wrap around")
        total += size
        if total > MOST or len(found) >= _MAX_SEGMENTS:
            raise _Bad(place, f"{len(found) + 1} segments of {total:#x} bytes are more than fit")
        content = data[at : at + in_file] + bytes(size - in_file)
        found.append(
            Segment(
                paddr, content, f"LOAD {i}", exec=bool(flags & 1), write=bool(flags & 2), vaddr=vaddr
            )
        )
    if not found:
        raise _Bad("program headers", "none of them loads anything")
    found.sort(key=lambda segment: segment.addr)
    for low, high in pairwise(found):
        if low.addr + len(low.data) > high.addr:
            end = low.addr + len(low.data)
            raise _Bad("program headers", f"{low.name} ends at {end:#x}, {high.name} begins at "
                       f"{high.addr:#x}: they overlap")  # fmt: skip
    return found


def _sections(data: bytes, offset: int, count: int, names: int) -> list[Section]:
    rows = [_SECTION.unpack_from(data, offset + i * _SECTION.size) for i in range(count)]
    if not rows:
        return []
    for i, row in enumerate(rows):
        if row[1] not in (0, _SHT_NOBITS):
            _inside(data, row[4], row[5], f"section header {i}")
    # The tables may share bytes of the file, so what they copy together must be bounded, too.
    if sum(row[5] for row in rows if row[1] not in (0, _SHT_NOBITS)) > 2 * len(data):
        raise _Bad("section headers", "the sections claim more bytes than the file has")
    _, kind, _, _, at, size, *_ = rows[names]
    table = data[at : at + size] if kind != _SHT_NOBITS else b""
    found = []
    for i, (label, kind, flags, addr, at, size, link, *_) in enumerate(rows):
        content = b"" if kind in (0, _SHT_NOBITS) else data[at : at + size]
        name = _string(table, label, f"section header {i}") if kind else ""
        found.append(Section(name, kind, flags, addr, content, size, link))
    return found


def _debugging(sections: list[Section]) -> dict[str, bytes]:
    """What the line tables are read from."""
    wanted = {section.name: section for section in sections if section.name in LINE_SECTIONS}
    return {name: _unpacked(section) for name, section in wanted.items()}


def _unpacked(section: Section) -> bytes:
    if not section.flags & _SHF_COMPRESSED:
        return section.data
    if len(section.data) < 24 or section.data[:4] != b"\1\0\0\0":
        raise _Bad(section.name, "compressed, but not by zlib", "compile with -gz=none")
    try:
        return zlib.decompressobj().decompress(section.data[24:], _MAX_UNPACKED)
    except zlib.error as error:
        raise _Bad(section.name, f"damaged compressed data ({error})") from None


def _string(table: bytes, offset: int, place: str) -> str:
    end = table.find(b"\0", offset, offset + _MAX_NAME)
    if end < 0:
        raise _Bad(place, f"its name at {offset:#x} of the string table has no end")
    return table[offset:end].decode("utf-8", "replace")


def _symbols(sections: list[Section]) -> tuple[dict[str, int], dict[str, int]]:
    """(names with their values, those of them that are plain numbers); globals win over locals."""
    strong: dict[str, int] = {}
    weak: dict[str, int] = {}
    equates: dict[str, int] = {}
    for index, table in enumerate(sections):
        if table.kind != _SHT_SYMTAB:
            continue
        place = f"symbol table (section {index})"
        if len(table.data) % _SYMBOL.size:
            raise _Bad(place, f"{len(table.data)} bytes are not whole symbols")
        if table.link >= len(sections):
            raise _Bad(place, f"its names are in section {table.link} of {len(sections)}")
        if len(table.data) > _MAX_SYMBOLS * _SYMBOL.size:
            raise _Bad(place, f"more than {_MAX_SYMBOLS} symbols")
        names = sections[table.link].data
        for i, (label, info, _, where, value, _) in enumerate(_SYMBOL.iter_unpack(table.data)):
            if not label or where == _SHN_UNDEF or info & 15 > _STT_FUNC:
                continue
            name = _string(names, label, f"{place}, symbol {i}")
            if info >> 4:
                strong[name] = value
            else:
                weak.setdefault(name, value)
            if where == _SHN_ABS:
                equates[name] = value
    symbols = weak | strong
    return symbols, {name: value for name, value in equates.items() if symbols[name] == value}


# --- what the rest of a Program is made of ----------------------------------------------------------


def _expectations(sections: list[Section], name: str) -> Iterator[Expectation]:
    for section in sections:
        if section.name == EXPECTATIONS:
            text = section.data.decode("utf-8", "replace").replace("\0", "\n")
            for number, line in enumerate(text.splitlines(), 1):
                if words := line.strip().removeprefix("#:").strip():
                    yield Expectation(name, number, words)


def _placed(rows: list[Line], segments: list[Segment]) -> tuple[Line, ...]:
    """Lines at their virtual addresses, and once more where a segment lies before paging is on."""
    moved: list[Any] = []
    for segment in segments:
        if segment.vaddr != segment.addr:
            end = segment.vaddr + len(segment.data)
            by = segment.addr - segment.vaddr
            moved += [
                attrs.evolve(row, addr=row.addr + by) for row in rows if segment.vaddr <= row.addr < end
            ]
    if not moved:
        return tuple(rows)
    placed: list[Line] = []
    for row in sorted((*rows, *moved), key=lambda row: row.addr):
        if not placed or row.addr >= placed[-1].addr + placed[-1].size:
            placed.append(row)
    return tuple(placed)
