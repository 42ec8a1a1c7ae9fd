"""GNU as and ld as the oracle: the same source, linked to the same addresses."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vpmu_emu.asm import Program

INCLUDE = ROOT / "guests" / "include"
_SCRIPT = """
SECTIONS {
  . = 0x100000;
  .text : { *(.text) *(.text.*) }
  . = ALIGN(4096);
  .data : { *(.data) *(.rodata) *(.rodata.*) *(.data.*) *(.got) }
  . = ALIGN(4096);
  .bss : { *(.bss) *(.bss.*) *(COMMON) }
  /DISCARD/ : { *(.note.*) *(.comment) *(.eh_frame) }
}
"""


def require(*tools: str) -> None:
    """Skip the test without these tools, or fail if oracles are required."""
    for tool in tools:
        if shutil.which(tool) is None:
            if os.environ.get("VPMU_REQUIRE_ORACLES") == "1":
                pytest.fail(f"{tool} is required and not installed")
            pytest.skip(f"{tool} is not installed")


def sections(elf: bytes) -> dict[str, tuple[int, bytes]]:
    """Allocated sections of an ELF64 file as name: (address, bytes); zeros for .bss."""
    offset = struct.unpack_from("<Q", elf, 40)[0]
    size, count, names = struct.unpack_from("<HHH", elf, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", elf, offset + size * i) for i in range(count)]
    table = elf[headers[names][4] : headers[names][4] + headers[names][5]]
    found = {}
    for name, kind, flags, address, at, length, *_ in headers:
        if flags & 2:
            label = table[name : table.index(b"\0", name)].decode()
            found[label] = (address, bytes(length) if kind == 8 else elf[at : at + length])
    return found


def gnu(
    source: str, folder: Path, include: Path | None = None, flags: Sequence[str] = ()
) -> dict[str, tuple[int, bytes]]:
    """Sections of the linked source, which must assemble; `flags` are more words for as."""
    require("as", "ld")
    (folder / "gnu.s").write_text(".intel_syntax noprefix\n" + source)
    (folder / "gnu.ld").write_text(_SCRIPT)
    paths = ["-I", str(include)] if include else []
    _run("as", "--64", *paths, *flags, "-o", "gnu.o", "gnu.s", folder=folder)
    # Our assembler does not merge strings.
    _run("objcopy", "-w", "--set-section-flags", ".rodata*.str*=alloc,readonly,data", "gnu.o",
         folder=folder)  # fmt: skip
    _run("ld", "-e", "0", "-z", "max-page-size=4096", "-T", "gnu.ld", "-o", "gnu.elf", "gnu.o",
         folder=folder)  # fmt: skip
    return sections((folder / "gnu.elf").read_bytes())


def _run(*command: str, folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:4000]


def accepts(source: str, folder: Path, flags: Sequence[str] = ()) -> bool:
    """Whether GNU as takes the source; `flags` are more words for it."""
    require("as", "ld")
    (folder / "gnu.s").write_text(".intel_syntax noprefix\n" + source)
    command = ("as", "--64", *flags, "-o", "gnu.o", "gnu.s")
    return subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0


def assert_gnu_makes(program: Program, path: Path, folder: Path) -> None:
    """The program's segments are what GNU as and ld make of its file, at the same addresses."""
    theirs = gnu(path.read_text(), folder, INCLUDE)
    assert program.segments
    for segment in program.segments:
        address, data = theirs[segment.name]
        assert segment.addr == address, segment.name
        assert bytes(segment.data) == data, segment.name
