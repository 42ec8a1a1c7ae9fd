"""A file to a Program, whatever it is: text for the assembler or an ELF executable."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vpmu_emu.asm import Program, assemble, with_defsym
from vpmu_emu.asm.files import read_bytes, text_of
from vpmu_emu.errors import LoadError
from vpmu_emu.load.elf import MAGIC, load_elf

__all__ = ["load", "load_bytes", "load_elf"]

_LANGUAGES = {
    ".c": "C has to be compiled", ".h": "C has to be compiled", ".cc": "C++ has to be compiled",
    ".cpp": "C++ has to be compiled", ".S": "it has to go through the C preprocessor",
}  # fmt: skip


def load(path: str | Path, defsym: Mapping[str, int] | None = None) -> Program:
    """The program in a file: an ELF executable by its magic, else source text, with `defsym` defined.

    Raises:
        AssemblyError: text with errors, all of them listed.
        LoadError: a file that cannot be read, or an executable that cannot be run.
        ConfigError: symbols for an executable, or such as the source never asks for.
    """
    path = Path(path)
    return load_bytes(read_bytes(path), str(path), defsym)


def load_bytes(data: bytes, name: str, defsym: Mapping[str, int] | None = None) -> Program:
    """As `load`, for bytes that errors call `name`."""
    if data.startswith(MAGIC):
        return with_defsym(load_elf(data, name), defsym or {})
    suffix = Path(name).suffix
    if suffix in _LANGUAGES:
        raise LoadError(f"{name}: {_LANGUAGES[suffix]}; docs/programs.md has the line of gcc for it")
    return assemble(text_of(data, name), name, defsym=defsym)
