"""A program as a static ELF64 executable, for gdb, objdump and native loaders."""

from __future__ import annotations

import struct

from vpmu_emu.asm.program import Program

_EM_X86_64 = 62
_PAGE = 4096


def _strings(names: list[str]) -> tuple[bytes, list[int]]:
    table, offsets = bytearray(b"\0"), []
    for name in names:
        offsets.append(len(table))
        table += name.encode("utf-8", "replace") + b"\0"
    return bytes(table), offsets


def write_elf(program: Program, *, symbols: bool = True) -> bytes:
    """The file: program headers, and with `symbols` a section per segment and the symbol table."""
    segments = program.segments
    header_size = 64 + 56 * len(segments)
    body = bytearray()
    start = -(-header_size // _PAGE) * _PAGE
    offsets: list[int] = []
    for segment in segments:
        body += bytes(-len(body) % _PAGE)
        offsets.append(start + len(body))
        if segment.name != ".bss":
            body += segment.data

    if not symbols:
        head = _head(program, offsets, 0, 0)
        return head + bytes(start - len(head)) + bytes(body)
    names = [name for name in program.symbols if not name.startswith(".L")]
    strtab, name_offsets = _strings(names)
    symtab = bytearray(24)
    for name, offset in zip(names, name_offsets, strict=True):
        value = program.symbols[name] & (1 << 64) - 1
        index = 0xFFF1  # SHN_ABS
        if name not in program.equates:
            for number, segment in enumerate(segments, 1):
                if segment.addr <= value <= segment.addr + len(segment.data):
                    index = number
                    break
        symtab += struct.pack("<IBBHQQ", offset, 0x10, 0, index, value, 0)

    section_names = [segment.name for segment in segments] + [".symtab", ".strtab", ".shstrtab"]
    shstrtab, section_offsets = _strings(section_names)
    body += bytes(-len(body) % 8)
    symtab_at = start + len(body)
    body += symtab
    strtab_at = start + len(body)
    body += strtab
    shstrtab_at = start + len(body)
    body += shstrtab
    body += bytes(-len(body) % 8)
    sections_at = start + len(body)

    count = len(segments)
    sections = bytearray(64)
    for segment, named, offset in zip(segments, section_offsets, offsets, strict=False):
        bss = segment.name == ".bss"
        flags = 2 | (1 if segment.write else 0) | (4 if segment.exec else 0)
        sections += struct.pack(
            "<IIQQQQIIQQ",
            named, 8 if bss else 1, flags, segment.addr, offset, len(segment.data), 0, 0, 16, 0,
        )  # fmt: skip
    for named, kind, at, size, link, info, align, entry in (
        (section_offsets[count], 2, symtab_at, len(symtab), count + 2, 1, 8, 24),
        (section_offsets[count + 1], 3, strtab_at, len(strtab), 0, 0, 1, 0),
        (section_offsets[count + 2], 3, shstrtab_at, len(shstrtab), 0, 0, 1, 0),
    ):
        sections += struct.pack("<IIQQQQIIQQ", named, kind, 0, 0, at, size, link, info, align, entry)

    head = _head(program, offsets, sections_at, count + 4)
    return head + bytes(start - len(head)) + bytes(body) + bytes(sections)


def _head(program: Program, offsets: list[int], sections_at: int, total: int) -> bytes:
    """ELF header and program headers."""
    ident = b"\x7fELF" + bytes((2, 1, 1, 0)) + bytes(8)
    last = total - 1 if total else 0
    header = ident + struct.pack(
        "<HHIQQQIHHHHHH",
        2, _EM_X86_64, 1, program.entry, 64, sections_at, 0, 64, 56, len(offsets), 64, total, last,
    )  # fmt: skip
    programs = bytearray()
    for segment, offset in zip(program.segments, offsets, strict=True):
        flags = 4 | (2 if segment.write else 0) | (1 if segment.exec else 0)
        size = 0 if segment.name == ".bss" else len(segment.data)
        programs += struct.pack(
            "<IIQQQQQQ",
            1, flags, offset, segment.addr, segment.addr, size, len(segment.data), _PAGE,
        )  # fmt: skip
    return header + bytes(programs)
