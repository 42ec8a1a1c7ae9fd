"""Statements to a Program, in order, once; every error is collected and none stops the next."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import attrs

from vpmu_emu.asm.blocks import Blocks
from vpmu_emu.asm.core import MAX_FAULTS, Frame, TooBigError, check_defsym, moved
from vpmu_emu.asm.directives import CFI, DATA_SIZES, IGNORED, Directives
from vpmu_emu.asm.errors import DirectiveFault, Fault
from vpmu_emu.asm.files import read_bytes, text_of
from vpmu_emu.asm.image import Image
from vpmu_emu.asm.instructions import FIXED, Instructions
from vpmu_emu.asm.program import Program
from vpmu_emu.asm.reader import SYMBOL, Statement
from vpmu_emu.asm.sections import UndefinedFault
from vpmu_emu.errors import ConfigError

_LABEL = re.compile(rf"\s*(?:({SYMBOL})|([0-9]+))(?:(?<!\")\s*)?:(?!:)")
_ASSIGN = re.compile(r"([A-Za-z_.$][A-Za-z0-9_.$]*)\s*(==?)(?!=)\s*")
_WORD = re.compile(r"\S+")
# Nothing of these is kept in notes and debugging tables, so nothing in them needs to have a value.
_DROPPED = {
    *DATA_SIZES, ".uleb128", ".sleb128", ".ascii", ".asciz", ".string", ".string8",
}  # fmt: skip
_CONDITIONALS = {
    ".if", ".ifdef", ".ifndef", ".ifnotdef", ".ifeq", ".ifne", ".ifgt", ".ifge", ".iflt", ".ifle",
    ".ifb", ".ifnb", ".ifc", ".ifnc", ".ifeqs", ".ifnes", ".else", ".elseif", ".endif",
}  # fmt: skip


def _open_condition() -> Fault:
    return Fault("this condition is never closed", "write .endif")


class Assembler(Instructions, Directives, Blocks, Image):
    """One assembly; `run` once, then `finish`."""

    def __init__(self, name: str, include: Sequence[Path], defsym: Mapping[str, int]) -> None:
        super().__init__(name, include, defsym)
        self.directives = self._directives()

    def run(self, text: str) -> None:
        """Read a source to the end."""
        frames = self.frames
        try:
            self.read_text(text, self.name)
            while frames:
                frame = frames[-1]
                statements = frame.statements
                if frame.position >= len(statements):
                    if frame.repeat > 1 and statements:
                        frame.repeat -= 1
                        frame.position = 0
                    else:
                        self._leave(frame)
                    continue
                statement = statements[frame.position]
                frame.position += 1
                self.budget -= 1
                if self.budget < 0:
                    msg = f"the source expands to more than {self.limit} statements"
                    raise TooBigError(msg, "a .rept or a macro repeats too often")
                self.statement = statement
                try:
                    self._statement(statement)
                except Fault as fault:
                    self.report(statement, fault)
                except RecursionError:
                    deep = Fault("the expression is nested too deeply", "split it with .equ")
                    self.report(statement, deep)
                if self.faults > MAX_FAULTS:
                    self.stopped = True
                    self.frames.clear()
                    self.conditions.clear()
            if self.pending:
                self._flush_prefixes()
        except TooBigError as error:
            where = self.statement or Statement("", self.name, 1, 1, text[:80].split("\n")[0])
            self.report(where, Fault(error.message, error.hint))
            self.stopped = True
            self.frames.clear()
            self.conditions.clear()
        for condition in self.conditions:
            self.report(condition.statement, _open_condition())

    def _leave(self, frame: Frame) -> None:
        self.frames.pop()
        if len(self.conditions) > frame.conditions:
            for condition in self.conditions[frame.conditions :]:
                self.report(condition.statement, _open_condition())
            del self.conditions[frame.conditions :]
            self._update_skipping()

    def _statement(self, statement: Statement) -> None:
        text = statement.text
        if self.skipping:
            word = text.split(None, 1)[0].lower()
            if word in _CONDITIONALS:
                try:
                    self.directives[word](text[len(word) :].strip(), statement)
                except DirectiveFault as fault:
                    raise Fault(fault.message, fault.hint, 0, len(word)) from None
            return
        code = FIXED.get(text)
        if code is not None and not self.pending and not self.shadowed:
            self._emit(code, "insn", statement)
            return
        offset = 0
        if ":" in text:
            while match := _LABEL.match(text, offset):
                self._label(match, statement)
                offset = match.end()
            while offset < len(text) and text[offset].isspace():
                offset += 1
            if offset >= len(text):
                return
            text = text[offset:]
        try:
            self._dispatch(text, statement)
        except Fault as fault:
            if offset and not isinstance(fault, UndefinedFault):
                fault = moved(fault, offset)
            raise fault from None

    def _dispatch(self, text: str, statement: Statement) -> None:
        match = _WORD.match(text)
        assert match
        word = match[0].lower()
        if "=" in text:
            assign = _ASSIGN.match(text)
            if assign:
                value = text[assign.end() :]
                self._assign(assign[1], value, assign.end(), statement, assign[2] == "==")
                return
        if ":" in text and text[match.end() :].lstrip().startswith(":"):
            raise Fault("':' is not expected here", "a label has one", text.index(":", match.end()))
        if word in self.macros:
            self._call(self.macros[word], text[match.end() :], statement)
            return
        if word[0] == ".":
            handler = self.directives.get(word)
            rest = text[match.end() :]
            stripped = rest.strip()
            if handler is None:
                fault = Fault(f"no such directive: '{word}'", "", 0, len(word))
                fault.near = word, self.directives
                raise fault
            if self.pending:
                self._flush_prefixes()
            if self.section.role == "none" and word in _DROPPED:
                return
            try:
                handler(stripped, statement)
            except UndefinedFault:
                raise
            except Fault as fault:
                if isinstance(fault, DirectiveFault) or not stripped:
                    raise Fault(fault.message, fault.hint, 0, len(word)) from None
                begin = match.end() + len(rest) - len(rest.lstrip())
                raise moved(fault, begin) from None
            return
        self._instruction(text, statement)

    def _directives(self) -> dict[str, Callable[[str, Statement], None]]:
        table: dict[str, Callable[[str, Statement], None]] = {}
        for name, size in DATA_SIZES.items():
            table[name] = self._data(size)
        for name, (pattern, example) in IGNORED.items():
            table[name] = self._ignored(pattern, example)
        for name in (".local", ".hidden", ".protected", ".internal"):
            table[name] = self._binding(None)
        for name in CFI:
            table[name] = self._cfi(name)
        for name in (".text", ".data", ".bss"):
            table[name] = self._switch(name)
        for name in _CONDITIONALS:
            table[name] = self._conditional(name)
        for name, power in ((".align", False), (".balign", False), (".p2align", True)):
            table[name] = self._align(power)
        for name in (".skip", ".space", ".zero"):
            table[name] = self._skip
        for name in (".equ", ".set", ".equiv"):
            table[name] = self._equ(name == ".equiv")
        for name in (".ascii", ".asciz", ".string", ".string8"):
            table[name] = self._ascii(name != ".ascii")
        for name in (".endm", ".endr", ".endmacro"):
            table[name] = self._stray(name)
        for name in (".code16", ".code32", ".att_syntax"):
            table[name] = self._refused(name)
        table |= {
            ".globl": self._binding(self.globals),
            ".global": self._binding(self.globals),
            ".weak": self._binding(self.weak),
            ".uleb128": self._leb128(False),
            ".sleb128": self._leb128(True),
            ".section": self._section_directive,
            ".pushsection": self._pushsection,
            ".popsection": self._popsection,
            ".previous": self._previous,
            ".intel_syntax": self._intel_syntax,
            ".fill": self._fill,
            ".comm": self._comm,
            ".lcomm": self._lcomm,
            ".size": self._size,
            ".file": self._file,
            ".loc": self._loc,
            ".org": self._org,
            ".include": self._include,
            ".macro": self._macro,
            ".purgem": self._purgem,
            ".exitm": self._exitm,
            ".rept": self._rept,
            ".irp": self._irp,
            ".irpc": self._irp,
            ".error": self._error,
            ".err": self._error,
            ".end": self._end,
        }
        return table


def assemble(
    text: str, name: str = "<stdin>", include: Sequence[str | Path] = (),
    defsym: Mapping[str, int] | None = None,
) -> Program:
    """Assemble source text.

    Args:
        text: the source.
        name: what errors call it; `.include` also looks in its folder.
        include: folders for `.include`; `guests/include` always follows.
        defsym: symbols that are defined before the first line, as by `as --defsym`.

    Raises:
        AssemblyError: with every error of the source.
        ConfigError: a symbol of `defsym` that cannot be one, or that the source never asks for.
    """
    defsym = defsym or {}
    check_defsym(defsym)
    folders = tuple(Path(folder) for folder in include)
    assembler = Assembler(name, folders, defsym)
    # Everything that is made is kept until the end: looking for what could go takes a third of the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        assembler.run(text)
        return attrs.evolve(assembler.finish(), text=text, include=folders)
    finally:
        if collecting:
            gc.enable()


def with_defsym(program: Program, defsym: Mapping[str, int]) -> Program:
    """The program with these symbols, too, defined before its first line; itself if it has them.

    Raises:
        AssemblyError, ConfigError: as `assemble`; ConfigError: it is no program that was assembled.
    """
    if not defsym:
        return program
    wanted = {**program.defsym, **defsym}
    if wanted == program.defsym:
        return program
    if program.text is None:
        what = f"{program.name} is an executable, whose symbols have their values"
        raise ConfigError("defsym", what, "a program that is assembled")
    again = assemble(program.text, program.name, program.include, wanted)
    return again if program.entered is None else again.entered_at(program.entered)


def assemble_file(
    path: str | Path, include: Sequence[str | Path] = (), defsym: Mapping[str, int] | None = None
) -> Program:
    """Assemble a file; see `assemble`.

    Raises:
        AssemblyError: with every error of the source.
        LoadError: the file cannot be read.
    """
    path = Path(path)
    return assemble(text_of(read_bytes(path), str(path)), str(path), include, defsym)
