"""Which source line made the bytes at an address: DWARF line tables, by pyelftools (extra `elf`).

Code of an inline function from another file, such as a wrapper of WRMSR in a header, has the line that
calls it: there is who wrote what.

Nothing here can keep a program from running for want of a source file or of the extra; then a note says
what is missing. Damaged tables are a LoadError.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from vpmu_emu.asm.program import Line, Segment
from vpmu_emu.errors import LoadError

MAX_SOURCE = 1 << 23  # bytes of one source file that are read
LINE_SECTIONS = (
    ".debug_info", ".debug_abbrev", ".debug_line", ".debug_str", ".debug_line_str", ".debug_addr",
    ".debug_str_offsets", ".debug_ranges", ".debug_rnglists",
)  # fmt: skip
_NEEDED = (".debug_info", ".debug_abbrev", ".debug_line")
_MAX_FILES = 4096
_PIECE = 256  # bytes of code that share a list of calls
_LONGEST_INLINE = 1 << 20
_MAX_INFO = 1 << 21  # bytes of .debug_info that are read for inline functions
# DWARF 5 file tables: forms whose values have no size would let a count run away (7.5.6).
_FORMS = {"DW_FORM_string", "DW_FORM_line_strp", "DW_FORM_strp", "DW_FORM_udata", "DW_FORM_data1",
          "DW_FORM_data2", "DW_FORM_data4", "DW_FORM_data8", "DW_FORM_data16", "DW_FORM_block"}  # fmt: skip


class _Damaged(Exception):
    """The tables contradict themselves."""


class _Stream(io.BytesIO):
    """A section that can be read only so often: hostile tables may point at themselves."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.left = 100_000 + 16 * len(data)

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise _Damaged("it never ends")
        return super().read(size)


def read_lines(
    sections: Mapping[str, bytes], segments: Sequence[Segment], name: str
) -> tuple[list[Line], dict[str, list[str]], tuple[str, ...]]:
    """Lines of kind "code" in address order, the sources that are there, and notes for the user.

    Args:
        sections: contents by name, of LINE_SECTIONS those that there are.
        segments: what is loaded; lines elsewhere (of code that the linker dropped) are left out.
        name: of the executable; sources are also looked for beside it.

    Raises:
        LoadError: the tables are damaged.
    """
    if ".debug_line" not in sections:
        return [], {}, ()
    try:
        import elftools  # noqa: F401
    except ImportError:
        note = "to see its source lines, install the extra `elf`: pip install 'vpmu-emu[elf]'"
        return [], {}, (note,)
    if missing := [section for section in _NEEDED if section not in sections]:
        raise LoadError(f"{name}: DWARF: there is .debug_line but no {' and no '.join(missing)}")
    try:
        found = list(_rows(sections))
    # pyelftools trusts what it reads: a damaged table ends in any exception at all.
    except Exception as error:
        raise LoadError(f"{name}: DWARF: the line table is damaged ({_words(error)})") from None
    source: dict[str, list[str]] = {}
    absent = []
    for place in dict.fromkeys(row[2] for row in found):
        read = _source(place, name)
        if read is None:
            absent.append(place[0])
        else:
            source.setdefault(place[0], read)
    notes = (f"sources not found: {' '.join(absent[:5])}",) if absent else ()
    spans = [(s.vaddr, s.vaddr + len(s.data)) for s in segments if s.exec]
    lines: list[Line] = []
    for addr, end, (file, _), number in sorted(found, key=lambda row: row[:2]):
        if lines:
            addr = max(addr, lines[-1].addr + lines[-1].size)
        if addr >= end or not any(low <= addr and end <= high for low, high in spans):
            continue
        text = source.get(file, [])
        shown = text[number - 1].strip() if 0 < number <= len(text) else ""
        before = lines[-1] if lines else None
        if before and (before.file, before.line, before.addr + before.size) == (file, number, addr):
            lines[-1] = attrs.evolve(before, size=end - before.addr)
        else:
            lines.append(Line(addr, end - addr, file, number, shown, "code"))
    return lines, source, notes


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:80] or type(error).__name__


_Row = tuple[int, int, tuple[str, str], int]


def _rows(sections: Mapping[str, bytes]) -> Iterator[_Row]:
    """(first address, end, (file, folder of its compilation), line), neighbours of a line merged."""
    from elftools.dwarf.dwarfinfo import DebugSectionDescriptor, DwarfConfig, DWARFInfo

    def section(name: str) -> Any:
        data = sections.get(name)
        if data is None:
            return None
        return DebugSectionDescriptor(_Stream(data), name, None, len(data), 0)

    names = ("aranges", "abbrev", "frame", "str", "loc", "ranges", "line", "pubtypes", "pubnames",
             "addr", "str_offsets", "line_str", "loclists", "rnglists", "sup", "types")  # fmt: skip
    info = DWARFInfo(
        config=DwarfConfig(little_endian=True, default_address_size=8, machine_arch="x64"),
        debug_info_sec=section(".debug_info"),
        eh_frame_sec=None,
        gnu_debugaltlink_sec=None,
        **{f"debug_{n}_sec": section(f".debug_{n}") for n in names},
    )
    known = _check_headers(sections[".debug_line"])
    small = len(sections[".debug_info"]) <= _MAX_INFO
    for unit in info.iter_CUs():
        top = unit.get_top_DIE()
        where = top.attributes.get("DW_AT_stmt_list")
        if where is None:
            continue
        if where.value not in known:
            raise _Damaged(f"no line table begins at {where.value:#x}")
        folder = top.attributes.get("DW_AT_comp_dir")
        program = info.line_program_for_CU(unit)
        where = _text(folder.value) if folder else ""
        rows = list(_unit(program, where))
        calls = _inline_calls(info, unit, _files(program, where)) if small else []
        yield from _without_wrappers(rows, calls, _own(top))


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""


_Call = tuple[int, int, tuple[str, str], int]  # code from, to; where the function is called: file, line


def _own(top: Any) -> str:
    name = top.attributes.get("DW_AT_name")
    return Path(_text(name.value)).name if name else ""


def _inline_calls(info: Any, unit: Any, files: Sequence[tuple[str, str]]) -> list[_Call]:
    """Where code of inline functions is called from, outer functions first."""
    found: list[_Call] = []
    try:
        lists = info.range_lists()
        base = unit.get_top_DIE().attributes.get("DW_AT_low_pc")
        for die in unit.iter_DIEs():
            if die.tag != "DW_TAG_inlined_subroutine":
                continue
            call, line = (die.attributes.get(f"DW_AT_call_{key}") for key in ("file", "line"))
            index = call.value - (0 if unit["version"] >= 5 else 1) if call else -1
            if line is None or not 0 <= index < len(files):
                continue
            for low, high in _ranges(die, lists, base.value if base else 0, unit):
                found.append((low, high, files[index], line.value))
    # What is damaged here costs a nicety: every line is still the right one.
    except Exception:
        return []
    return found


def _ranges(die: Any, lists: Any, base: int, unit: Any) -> Iterator[tuple[int, int]]:
    low, high = die.attributes.get("DW_AT_low_pc"), die.attributes.get("DW_AT_high_pc")
    if low is not None and high is not None:
        end = high.value if high.form == "DW_FORM_addr" else low.value + high.value
        yield low.value, end
        return
    where = die.attributes.get("DW_AT_ranges")
    if where is None or lists is None:
        return
    for entry in lists.get_range_list_at_offset(where.value, cu=unit):
        if hasattr(entry, "base_address"):
            base = entry.base_address
        else:
            at = 0 if entry.is_absolute else base
            yield at + entry.begin_offset, at + entry.end_offset


def _without_wrappers(rows: list[_Row], calls: list[_Call], own: str) -> Iterator[_Row]:
    """Rows; inline functions of other files have the line of the unit's own file that calls them."""
    near: dict[int, list[_Call]] = {}
    for call in calls:
        for piece in range(call[0] // _PIECE, min(call[1], call[0] + _LONGEST_INLINE) // _PIECE + 1):
            near.setdefault(piece, []).append(call)
    for low, high, file, line in rows:
        if Path(file[0]).name == own or not calls:
            yield low, high, file, line
            continue
        edges = {edge for call in near.get(low // _PIECE, ()) for edge in call[:2] if low < edge < high}
        at = low
        for end in sorted(edges | {high}):
            outward = [call for call in reversed(near.get(at // _PIECE, [])) if call[0] <= at < call[1]]
            mine = next((call for call in outward if Path(call[2][0]).name == own), None)
            chosen = mine or (outward[-1] if outward else None)
            yield (at, end, chosen[2], chosen[3]) if chosen else (at, end, file, line)
            at = end


def _files(program: Any, folder: str) -> list[tuple[str, str]]:
    files = [_file(program, entry, folder) for entry in program["file_entry"]]
    if len(files) > _MAX_FILES:
        raise _Damaged(f"{len(files)} files in one unit")
    return files


def _unit(program: Any, folder: str) -> Iterator[_Row]:
    first = 0 if program["version"] >= 5 else 1
    files = _files(program, folder)
    begin: tuple[int, tuple[str, str], int] | None = None
    for entry in program.get_entries():
        state = entry.state
        if state is None:
            continue
        if begin is not None and begin[0] <= state.address:
            index = state.file - first
            if not state.end_sequence and 0 <= index < len(files):
                if (files[index], state.line) == begin[1:]:
                    continue
            # Line 0 is code of no line: what a compiler added by itself (DWARF 6.2.2).
            if begin[0] < state.address and begin[2] > 0:
                yield begin[0], state.address, begin[1], begin[2]
        if state.end_sequence:
            begin = None
            continue
        if not 0 <= state.file - first < len(files):
            raise _Damaged(f"file {state.file} of {len(files)}")
        begin = state.address, files[state.file - first], state.line


def _file(program: Any, entry: Any, folder: str) -> tuple[str, str]:
    """A file as the compiler was told its name, and the folder in which it was."""
    name, index = _text(entry.name), entry.dir_index or 0
    folders = program["include_directory"]
    # Entry 0 is the folder of the compilation; before DWARF 5 it is not written down.
    if program["version"] < 5:
        index -= 1
    if (program["version"] >= 5 and index == 0) or index < 0:
        return name, folder
    if index >= len(folders):
        raise _Damaged(f"folder {index} of {len(folders)}")
    return str(Path(_text(folders[index])) / name), folder


def _check_headers(data: bytes) -> set[int]:
    """Offsets of the line tables, each of whose file tables is as large as it says."""
    found = set()
    at = 0
    while at < len(data):
        found.add(at)
        length = int.from_bytes(data[at : at + 4], "little")
        wide = length == 0xFFFF_FFFF
        body = at + (12 if wide else 4)
        if wide:
            length = int.from_bytes(data[at + 4 : at + 12], "little")
        end = body + length
        if end > len(data) or length < 8:
            raise _Damaged(f"the table at {at:#x} has {length:#x} bytes")
        version = int.from_bytes(data[body : body + 2], "little")
        if not 2 <= version <= 5:
            raise _Damaged(f"the table at {at:#x} has version {version}")
        if version == 5:
            # address size, segment size, length of the header, then six bytes up to opcode_base
            opcodes = body + 4 + (8 if wide else 4) + 5
            if opcodes >= end:
                raise _Damaged(f"the table at {at:#x} ends in its header")
            _check_tables(data[opcodes + max(1, data[opcodes]) : end], 8 if wide else 4)
        at = end
    return found


def _check_tables(data: bytes, offset_size: int) -> None:
    from elftools.dwarf.enums import ENUM_DW_FORM

    known = {number: form for form, number in ENUM_DW_FORM.items() if form in _FORMS}
    stream = io.BytesIO(data)

    def uleb() -> int:
        value, shift = 0, 0
        while byte := stream.read(1):
            value |= (byte[0] & 0x7F) << shift
            shift += 7
            if byte[0] < 0x80:
                return value
            if shift > 63:
                break
        raise _Damaged("a number in a file table has no end")

    for _ in range(2):  # folders, then files
        kinds = []
        for _ in range((stream.read(1) or b"\0")[0]):
            uleb()
            number = uleb()
            if number not in known:
                raise _Damaged(f"a file table with values of form {number:#x}")
            kinds.append(known[number])
        count = uleb()
        if (not kinds and count) or count > _MAX_FILES:
            raise _Damaged(f"a file table of {count} entries with {len(kinds)} values each")
        for kind in kinds * count:
            _skip(stream, kind, uleb, offset_size)


def _skip(stream: io.BytesIO, kind: str, uleb: Any, offset_size: int) -> None:
    if kind == "DW_FORM_string":
        while stream.read(1) not in (b"", b"\0"):
            pass
    elif kind == "DW_FORM_udata":
        uleb()
    elif kind == "DW_FORM_block":
        stream.read(uleb())
    elif kind.startswith("DW_FORM_data"):
        stream.read(int(kind.removeprefix("DW_FORM_data")))
    else:
        stream.read(offset_size)


def _source(file: tuple[str, str], program: str) -> list[str] | None:
    name, folder = file
    for path in (Path(name), Path(folder) / name, Path(program).parent / Path(name).name):
        try:
            # Never a device or a pipe: reading one may not end.
            if path.is_file() and path.stat().st_size <= MAX_SOURCE:
                return path.read_text(encoding="utf-8", errors="replace").splitlines()
        except (OSError, ValueError):
            continue
    return None
