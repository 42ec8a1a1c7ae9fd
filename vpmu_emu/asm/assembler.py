"""Statements to a Program, in order, once; every error is collected and none stops the next."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import attrs

from vpmu_emu.asm.encode import (
    PREFIXES,
    Address,
    Branch,
    Encoded,
    Fixup,
    Immediate,
    Resolved,
    encode,
    unknown_mnemonic,
)
from vpmu_emu.asm.errors import Diagnostic, DirectiveFault, Fault, did_you_mean
from vpmu_emu.asm.nodes import (
    REGISTERS,
    Binary,
    Bracket,
    Expression,
    Indexed,
    Local,
    Memory,
    Name,
    Number,
    Operand,
    Prefixed,
    Register,
    Unary,
    Value,
)
from vpmu_emu.asm.parser import parse_expression, parse_operand
from vpmu_emu.asm.program import Expectation, Line, Program, Segment
from vpmu_emu.asm.reader import (
    Expansion,
    Macro,
    Statement,
    parse_arguments,
    parse_parameters,
    read,
    split_operands,
    string_bytes,
    substitute,
)
from vpmu_emu.asm.sections import (
    IMAGE_BASE,
    MAX_IMAGE,
    PAGE,
    Amount,
    Fragment,
    Linear,
    Section,
    Symbol,
    Tail,
    UndefinedFault,
    combine,
    is_address,
    negate,
    nops,
    number,
    relax,
    settle,
    symbol_amount,
)
from vpmu_emu.data import guests_dir
from vpmu_emu.errors import AssemblyError, LoadError
from vpmu_emu.tables.instructions import BY_NAME

MAX_STATEMENTS = 1_000_000
MAX_DEPTH = 100

_LABEL = re.compile(r"\s*(?:([A-Za-z_.$][A-Za-z0-9_.$]*)|([0-9]+))\s*:(?!:)")
_ASSIGN = re.compile(r"([A-Za-z_.$][A-Za-z0-9_.$]*)\s*(==?)(?!=)\s*")
_WORD = re.compile(r"\S+")
_NAME = re.compile(r"[A-Za-z_.$][A-Za-z0-9_.$]*\Z")
_STRING = re.compile(r'"(?:\\.|[^"\\])*(?:"|$)', re.DOTALL)
_OPENS = re.compile(r"(?:[\w.$]+\s*:\s*)*\.(rept|irpc?|macro|endr|endm)\b", re.IGNORECASE)


class _TooBigError(Exception):
    """The program cannot be finished; reading stops."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


@attrs.define(eq=False)
class _Frame:
    """Statements being read: a file, a macro call or a repeated block."""

    statements: list[Statement]
    kind: str
    name: str = ""
    position: int = 0
    repeat: int = 1
    conditions: int = 0
    origin: Expansion | None = None


@attrs.define(eq=False)
class _Condition:
    active: bool
    taken: bool
    parent: bool
    statement: Statement
    otherwise: bool = False


@lru_cache(maxsize=65536)
def _split_instruction(text: str) -> tuple[tuple[str, ...], str, tuple[tuple[int, Operand], ...]]:
    """Prefixes, mnemonic ("" after bare prefixes), and operands with their offsets."""
    prefixes: list[str] = []
    position = 0
    while True:
        match = _WORD.match(text, position)
        if match is None:
            return tuple(prefixes), "", ()
        word = match[0].lower()
        if word not in PREFIXES:
            break
        if word in prefixes:
            msg = f"'{word}' is there twice"
            raise Fault(msg, "", position, len(word))
        prefixes.append(word)
        position = match.end()
        while position < len(text) and text[position].isspace():
            position += 1
    if word not in BY_NAME:
        raise unknown_mnemonic(word).moved(position)
    operands: list[tuple[int, Operand]] = []
    rest = text[match.end() :]
    stripped = rest.lstrip()
    if stripped:
        begin = match.end() + len(rest) - len(stripped)
        for offset, piece in split_operands(stripped):
            at = begin + offset
            try:
                operands.append((at, parse_operand(piece)))
            except Fault as fault:
                raise _copy(fault, at) from None
    return tuple(prefixes), word, tuple(operands)


def _copy(fault: Fault, by: int) -> Fault:
    # Memoised parses raise anew each time, but a fault may pass several handlers.
    return Fault(fault.message, fault.hint, fault.at + by, fault.length)


def _open_condition() -> Fault:
    return Fault("this condition is never closed", "write .endif")


_FIXED: dict[str, bytes] = {}
_FIXED_LIMIT = 100_000
_DATA = {
    ".byte": 1, ".word": 2, ".short": 2, ".value": 2, ".hword": 2, ".2byte": 2,
    ".long": 4, ".int": 4, ".4byte": 4, ".quad": 8, ".8byte": 8,
}  # fmt: skip
_IGNORED = {
    ".globl", ".global", ".local", ".type", ".size", ".weak", ".hidden", ".protected", ".internal",
    ".ident", ".file", ".loc", ".extern", ".code64", ".title", ".sbttl", ".print", ".warning",
    ".att_mnemonic", ".intel_mnemonic", ".addrsig", ".addrsig_sym", ".arch",
}  # fmt: skip
_CONDITIONALS = {
    ".if", ".ifdef", ".ifndef", ".ifnotdef", ".ifeq", ".ifne", ".ifgt", ".ifge", ".iflt", ".ifle",
    ".ifb", ".ifnb", ".ifc", ".ifnc", ".ifeqs", ".ifnes", ".else", ".elseif", ".endif",
}  # fmt: skip


class Assembler:
    """One assembly; `run` once, then `finish`."""

    def __init__(self, name: str, include: Sequence[Path]) -> None:
        self.name = name
        self.include = [*include, guests_dir() / "include"]
        self.source: dict[str, list[str]] = {}
        self.expectations: list[Expectation] = []
        self.diagnostics: dict[tuple[Any, ...], Diagnostic] = {}
        self.symbols: dict[str, Symbol] = {}
        self.sections: dict[str, Section] = {}
        self.section = self._section(".text", "text")
        self.section_stack: list[tuple[Section, Section]] = []
        self.previous = self.section
        self.fragment = self.section.fragments[-1]
        self.macros: dict[str, Macro] = {}
        self.macro_calls = 0
        self.shadowed = False
        self.frames: list[_Frame] = []
        self.conditions: list[_Condition] = []
        self.skipping = False
        self.locals: dict[int, Amount] = {}
        self.forward: dict[int, Symbol] = {}
        self.pending: list[str] = []
        self.records: list[tuple[Fragment, int, int, str, Statement]] = []
        self.fixups: list[tuple[Fragment, int, int, Fixup, Statement]] = []
        self.bare: list[tuple[Amount, Statement]] = []
        self.budget = MAX_STATEMENTS
        self.room = MAX_IMAGE
        self.statement: Statement | None = None
        self.directives = self._directives()

    # ------------------------------------------------------------------ errors

    def report(self, statement: Statement, fault: Fault) -> None:
        """Turn a fault of a statement into a diagnostic."""
        at, hint = fault.at, fault.hint
        if isinstance(fault, UndefinedFault):
            name = fault.symbol.name
            if "\0" in name:
                fault.message = f"no label '{name.split(chr(0))[0]}:' follows"
                name = name.split("\0")[0] + "f"
            found = re.search(rf"(?<![\w.$]){re.escape(name)}(?![\w.$])", statement.text)
            at = found.start() if found else 0
            if not hint:
                hint = self._near_symbol(name)
        column = statement.column + max(at, 0)
        origin = statement.origin
        chain = origin.chain() if origin else ()
        key = (statement.file, statement.line, column, fault.message)
        if key not in self.diagnostics:
            self.diagnostics[key] = Diagnostic(
                statement.file,
                statement.line,
                column,
                max(1, fault.length),
                fault.message,
                hint,
                statement.source,
                chain,
            )

    def _near_symbol(self, name: str) -> str:
        for folder in self.include:
            for path in sorted(folder.glob("*.inc")) if folder.is_dir() else ():
                text = path.read_text(encoding="utf-8", errors="replace")
                if re.search(rf"^\s*\.(?:equ|set)\s+{re.escape(name)}\s*,", text, re.MULTILINE):
                    return f'.include "{path.name}" defines it'
        defined = [s.name for s in self.symbols.values() if s.value is not None]
        return did_you_mean(name, defined) or did_you_mean(name, REGISTERS)

    # ------------------------------------------------------------------ reading

    def read_text(self, text: str, name: str, statement: Statement | None = None) -> None:
        """Push a source to be read next."""
        try:
            statements, lines, expectations = read(text, name)
        except Fault as fault:
            lines = text.split("\n")
            self.source[name] = lines
            where = Statement("", name, fault.at, 1, lines[fault.at - 1])
            self.report(where, Fault(fault.message, fault.hint))
            return
        self.source[name] = lines
        self.expectations += [Expectation(name, line, words) for line, words in expectations]
        self.frames.append(_Frame(statements, "file", name, conditions=len(self.conditions)))

    def run(self) -> None:
        """Read everything that was pushed, to the end."""
        frames = self.frames
        try:
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
                    msg = f"the source expands to more than {MAX_STATEMENTS} statements"
                    raise _TooBigError(msg, "a .rept or a macro repeats too often")
                self.statement = statement
                try:
                    self._statement(statement)
                except Fault as fault:
                    self.report(statement, fault)
                except RecursionError:
                    deep = Fault("the expression is nested too deeply", "split it with .equ")
                    self.report(statement, deep)
        except _TooBigError as error:
            assert self.statement is not None
            self.report(self.statement, Fault(error.message, error.hint))
            self.frames.clear()
            self.conditions.clear()
        for condition in self.conditions:
            self.report(condition.statement, _open_condition())
        if self.pending:
            self._flush_prefixes()

    def _leave(self, frame: _Frame) -> None:
        self.frames.pop()
        if frame.kind != "rept" and len(self.conditions) > frame.conditions:
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
            elif _OPENS.match(text):
                self._skip_block(statement)
            return
        code = _FIXED.get(text)
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
                fault = _copy(fault, offset)
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
        if word in self.macros:
            self._call(self.macros[word], text[match.end() :], statement)
            return
        if word[0] == ".":
            handler = self.directives.get(word)
            rest = text[match.end() :]
            stripped = rest.strip()
            if handler is None:
                if word.startswith((".cfi_", ".att_")):
                    return
                hint = did_you_mean(word, self.directives)
                msg = f"no such directive: '{word}'"
                raise Fault(msg, hint, 0, len(word))
            if self.pending:
                self._flush_prefixes()
            try:
                handler(stripped, statement)
            except UndefinedFault:
                raise
            except Fault as fault:
                if isinstance(fault, DirectiveFault) or not stripped:
                    raise Fault(fault.message, fault.hint, 0, len(word)) from None
                begin = match.end() + len(rest) - len(rest.lstrip())
                raise _copy(fault, begin) from None
            return
        self._instruction(text, statement)

    # ------------------------------------------------------------------ symbols and values

    def _symbol(self, name: str) -> Symbol:
        symbol = self.symbols.get(name)
        if symbol is None:
            symbol = self.symbols[name] = Symbol(name)
        return symbol

    def here(self) -> Amount:
        """The address of the next byte."""
        return Linear(len(self.fragment.data), ((self.fragment, 1),))

    def _label(self, match: re.Match[str], statement: Statement) -> None:
        if match[2]:
            if len(match[2]) > 9:
                raise Fault("a local label has at most nine digits", "", match.start(2))
            index = int(match[2])
            self.locals[index] = self.here()
            waiting = self.forward.pop(index, None)
            if waiting is not None:
                waiting.value = self.here()
            return
        name = match[1]
        try:
            self._may_define(name)
            symbol = self._symbol(name)
            if symbol.value is not None:
                msg = f"'{name}' is already defined"
                file, line = symbol.place
                raise Fault(msg, f"first at {file}:{line}")
        except Fault as fault:
            self.report(statement, Fault(fault.message, fault.hint, match.start(1), len(name)))
            return
        symbol.value, symbol.label = self.here(), True
        symbol.place = (statement.file, statement.line)

    def _may_define(self, name: str) -> None:
        if name.lower() in REGISTERS:
            msg = f"'{name}' is a register"
            raise Fault(msg, "choose another name", 0, len(name))
        if name == ".":
            raise Fault("'.' cannot be set", "use .org or .skip")

    def _assign(
        self, name: str, text: str, at: int, statement: Statement, once: bool = False
    ) -> None:
        self._may_define(name)
        symbol = self._symbol(name)
        if symbol.label or (once and symbol.value is not None):
            file, line = symbol.place
            msg = f"'{name}' is already defined"
            raise Fault(msg, f"first at {file}:{line}", 0, len(name))
        try:
            value = self.evaluate(parse_expression(text.strip()))
        except UndefinedFault:
            raise
        except Fault as fault:
            raise _copy(fault, at) from None
        if isinstance(value, Linear) and any(atom is symbol for atom, _ in value.terms):
            msg = f"'{name}' is defined through itself"
            raise Fault(msg, "give it a first value above", 0, len(name))
        symbol.value = value
        symbol.place = (statement.file, statement.line)

    def evaluate(self, node: Value) -> Amount:
        """What an expression is worth here and now.

        Raises:
            Fault: a register or an address in it, or a missing local label.
        """
        if isinstance(node, int):
            return node
        kind = type(node)
        if kind is Number:
            return node.value  # type: ignore[union-attr]
        if isinstance(node, Name):
            if node.name == ".":
                return self.here()
            symbol = self.symbols.get(node.name)
            if symbol is None:
                symbol = self._symbol(node.name)
            return symbol_amount(symbol)
        if isinstance(node, Local):
            return self._local(node)
        if isinstance(node, Binary):
            left, right = self.evaluate(node.left), self.evaluate(node.right)
            try:
                return combine(node.op, left, right)
            except UndefinedFault:
                raise
            except Fault as fault:
                raise _copy(fault, node.at) from None
        if isinstance(node, Unary):
            return negate(node.op, self.evaluate(node.node))
        if isinstance(node, Prefixed) and node.word == "offset":
            return self.evaluate(node.node)
        if isinstance(node, Register):
            raise Fault(f"'{node.name}' is a register, not a number", "", node.at, len(node.name))
        at = node.at if isinstance(node, (Bracket, Indexed, Prefixed)) else 0
        raise Fault("an address is not a number", "", at)

    def _local(self, node: Local) -> Amount:
        if node.forward:
            symbol = self.forward.get(node.number)
            if symbol is None:
                # The name cannot be written in a source; report() takes it apart.
                symbol = self.forward[node.number] = Symbol(f"{node.number}\0")
            return symbol_amount(symbol)
        if node.number not in self.locals:
            text = f"{node.number}b"
            msg = f"no label '{node.number}:' above"
            raise Fault(msg, f"write {node.number}f for one below", node.at, len(text))
        return self.locals[node.number]

    def _number(self, text: str, what: str) -> int:
        """An expression that must be known now."""
        value = self.evaluate(parse_expression(text))
        if not isinstance(value, int):
            names = [atom.name for atom, _ in value.terms if isinstance(atom, Symbol)]
            hint = "its value depends on branches or alignments in between"
            if names:
                hint = did_you_mean(names[0], [s.name for s in self.symbols.values() if s.value])
                hint = hint or f"define '{names[0].split(chr(0))[0]}' above"
            msg = f"{what} must be a number known here"
            raise Fault(msg, hint, 0, len(text))
        return value

    # ------------------------------------------------------------------ emission

    def _emit(self, code: bytes, kind: str, statement: Statement) -> int:
        fragment = self.fragment
        size = len(code)
        self.room -= size
        if self.room < 0:
            raise self._too_big()
        if self.section.role == "bss" and any(code):
            raise Fault("only zeros can be in .bss", "put it in .data")
        data = fragment.data
        where = len(data)
        data += code
        self.records.append((fragment, where, size, kind, statement))
        return where

    @staticmethod
    def _too_big() -> _TooBigError:
        return _TooBigError(
            f"the image is larger than {MAX_IMAGE >> 20} MiB", "look for an .org, .skip or .rept"
        )

    def _tail(self, tail: Tail, kind: str, statement: Statement) -> None:
        tail.where = statement
        self.records.append((self.fragment, -1, 0, kind, statement))
        self.section.append(tail)
        self.fragment = self.section.fragments[-1]
        self.room -= 2
        if self.room < 0:
            raise self._too_big()

    def _flush_prefixes(self) -> None:
        assert self.statement is not None
        code = bytes(PREFIXES[p] for p in self.pending)
        self.pending.clear()
        self._emit(code, "data", self.statement)

    # ------------------------------------------------------------------ instructions

    def _instruction(self, text: str, statement: Statement) -> None:
        try:
            prefixes, name, operands = _split_instruction(text)
        except Fault as fault:
            if self.macros and fault.message.startswith("no such instruction"):
                word = text[fault.at :].split()[0].lower()
                raise unknown_mnemonic(word, list(self.macros)).moved(fault.at) from None
            raise
        if not name:
            self.pending += prefixes
            return
        resolved: list[Resolved] = []
        constant, bare = True, None
        for at, operand in operands:
            if isinstance(operand, Register):
                resolved.append(operand)
                continue
            try:
                value = self._resolve(operand)
            except UndefinedFault:
                raise
            except Fault as fault:
                raise _copy(fault, at) from None
            if isinstance(operand, Expression):
                constant &= isinstance(operand.value, int)
                if isinstance(value, Address):
                    bare = value.disp
            else:
                constant &= isinstance(operand.disp, int) and isinstance(operand.scale, int)
                if operand.bare and isinstance(value, Address):
                    bare = value.disp
            resolved.append(value)
        try:
            encoded = encode(name, prefixes, resolved)
        except Fault as fault:
            self._check_register_names(operands)
            if fault.at < 0:
                at, operand = operands[min(-fault.at, len(operands)) - 1]
                length = len(operand.name) if isinstance(operand, Register) else len(operand.text)
                raise Fault(fault.message, fault.hint, at, length) from None
            raise
        if self.section.role == "bss":
            raise Fault("only zeros can be in .bss", "instructions go in .text")
        if isinstance(encoded, Branch):
            tail = Tail(
                "jump",
                target=encoded.target,
                short=encoded.short,
                long=encoded.long,
            )
            if self.pending:
                self._flush_prefixes()
            self._tail(tail, "insn", statement)
            return
        self._place(encoded, text, constant, statement)
        if bare is not None and not any(f.pc_relative for f in encoded.fixups):
            self.bare.append((bare, statement))

    def _check_register_names(self, operands: Sequence[tuple[int, Operand]]) -> None:
        """A misspelt register is an undefined symbol, so memory; say what is meant."""
        for at, operand in operands:
            if isinstance(operand, Expression) and isinstance(operand.value, Name):
                name = operand.value.name
                hint = did_you_mean(name, REGISTERS)
                symbol = self.symbols.get(name)
                if hint and symbol is not None and symbol.value is None:
                    raise Fault(f"'{name}' is not a register", hint, at, len(name))

    def _place(self, encoded: Encoded, text: str, constant: bool, statement: Statement) -> None:
        code, shift = encoded.data, 0
        if self.pending:
            head = bytes(PREFIXES[p] for p in self.pending)
            self.pending.clear()
            code, shift = head + code, len(head)
        elif constant and not encoded.fixups:
            if len(_FIXED) > _FIXED_LIMIT:
                _FIXED.clear()
            if statement.text == text:
                _FIXED[text] = code
        where = self._emit(code, "insn", statement)
        for fixup in encoded.fixups:
            end = where + len(code)
            self.fixups.append((self.fragment, where + shift, end, fixup, statement))

    def _resolve(self, operand: Expression | Memory) -> Immediate | Address:
        if isinstance(operand, Expression):
            value = self.evaluate(operand.value)
            if (
                not isinstance(value, int)
                and not operand.offset
                and len(value.terms) == 1
                and value.terms[0][1] == 1
            ):
                memory = Memory(0, -1, None, None, 1, 0, True, operand.text, "b0")
                return Address(memory, value, 1, "b0")
            return Immediate(value, operand.text)
        disp = self.evaluate(operand.disp)
        if operand.bare and isinstance(disp, int):
            hint = f"write [{operand.text.split()[-1]}] for memory at that address"
            msg = "a number with a size is an immediate to GNU as"
            raise Fault(msg, hint, 0, len(operand.text))
        scale = self.evaluate(operand.scale)
        if scale not in (1, 2, 4, 8):
            raise Fault("the scale is not 1, 2, 4 or 8", "", 0, len(operand.text))
        assert isinstance(scale, int)
        return Address(operand, disp, scale, operand.key)

    # ------------------------------------------------------------------ directives

    def _directives(self) -> dict[str, Callable[[str, Statement], None]]:
        table: dict[str, Callable[[str, Statement], None]] = {}
        for name, size in _DATA.items():
            table[name] = self._data(size)
        for name in _IGNORED:
            table[name] = lambda text, statement: None
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
        for name in (".comm", ".lcomm"):
            table[name] = self._comm
        table |= {
            ".section": self._section_directive,
            ".pushsection": self._pushsection,
            ".popsection": self._popsection,
            ".previous": self._previous,
            ".intel_syntax": self._intel_syntax,
            ".fill": self._fill,
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

    def _data(self, size: int) -> Callable[[str, Statement], None]:
        limit = 1 << 8 * size

        def handler(text: str, statement: Statement) -> None:
            if not text:
                return
            for offset, piece in split_operands(text):
                try:
                    value = self.evaluate(parse_expression(piece))
                    if isinstance(value, int):
                        if size < 8 and not -limit < value < limit:
                            msg = f"{value:#x} does not fit in {size} byte{'s'[: size > 1]}"
                            raise Fault(msg, "", 0, len(piece))
                        code = (value & (limit - 1)).to_bytes(size, "little")
                        self._emit(code, "data", statement)
                        continue
                except UndefinedFault:
                    raise
                except Fault as fault:
                    raise _copy(fault, offset) from None
                where = self._emit(bytes(size), "data", statement)
                fixup = Fixup(0, size, value, False, "either")
                self.fixups.append((self.fragment, where, where + size, fixup, statement))

        return handler

    def _ascii(self, terminated: bool) -> Callable[[str, Statement], None]:
        def handler(text: str, statement: Statement) -> None:
            position, out, fresh = 0, bytearray(), True
            if not text:
                raise Fault("a string in double quotes is expected")
            while position < len(text):
                char = text[position]
                if char in " \t":
                    position += 1
                elif char == ",":
                    out += b"\0" if terminated else b""
                    position += 1
                    fresh = True
                else:
                    match = _STRING.match(text, position)
                    piece = match[0] if match else text[position:]
                    try:
                        out += string_bytes(piece)
                    except Fault as fault:
                        raise _copy(fault, position) from None
                    position += len(piece)
                    fresh = False
            if fresh:
                raise Fault("a string is missing", "", len(text))
            out += b"\0" if terminated else b""
            self._emit(bytes(out), "data", statement)

        return handler

    def _equ(self, once: bool) -> Callable[[str, Statement], None]:
        def handler(text: str, statement: Statement) -> None:
            name, comma, value = text.partition(",")
            name = name.strip()
            if not _NAME.match(name) or not comma:
                msg = "a name, a comma and a value are expected"
                raise Fault(msg, ".equ NAME, 5", 0, max(1, len(name)))
            self._assign(name, value, len(text) - len(value.lstrip()), statement, once)

        return handler

    def _align(self, power: bool) -> Callable[[str, Statement], None]:
        def handler(text: str, statement: Statement) -> None:
            parts = [part for _, part in split_operands(text)]
            amount = self._number(parts[0], "an alignment") if parts[0] else 0
            if power:
                if not 0 <= amount < 64:
                    raise Fault("the exponent of an alignment is 0 to 26", "", 0, len(parts[0]))
                amount = 1 << amount
            amount = amount or 1
            if amount < 0 or amount & (amount - 1):
                raise Fault("an alignment is a power of two", "", 0, len(parts[0]))
            if amount > MAX_IMAGE:
                raise Fault(f"an alignment is at most {MAX_IMAGE >> 20} MiB", "", 0, len(parts[0]))
            fill: int | None = None
            if len(parts) > 1 and parts[1]:
                fill = self._number(parts[1], "the fill") & 255
            limit = self._number(parts[2], "the limit") if len(parts) > 2 and parts[2] else 0
            if len(parts) > 3:
                raise Fault("an alignment, a fill and a limit are all there is", "", 0, len(text))
            if self.section.role == "text":
                fill = None if fill == 0x90 else fill
            else:
                fill = fill or 0
            if self.section.role == "bss" and fill:
                raise Fault("only zeros can be in .bss", "")
            if amount == 1 or limit < 0:
                return
            # An alignment beyond the limit still aligns the section, as in GNU as.
            self.section.alignment = max(self.section.alignment, amount)
            kind = "insn" if fill is None else "data"
            self._tail(Tail("align", alignment=amount, limit=limit, fill=fill), kind, statement)

        return handler

    def _skip(self, text: str, statement: Statement) -> None:
        parts = [part for _, part in split_operands(text)]
        fill = self._number(parts[1], "the fill") & 255 if len(parts) > 1 else 0
        if self.section.role == "bss" and fill:
            raise Fault("only zeros can be in .bss", "put it in .data")
        size = self.evaluate(parse_expression(parts[0]))
        if isinstance(size, int):
            if size < 0:
                raise Fault("a negative length", "", 0, len(parts[0]))
            if size > self.room:
                raise self._too_big()
            self._emit(bytes((fill,)) * size, "data", statement)
        else:
            self._tail(Tail("skip", target=size, fill=fill), "data", statement)

    def _fill(self, text: str, statement: Statement) -> None:
        parts = [self._number(part, "an operand of .fill") for _, part in split_operands(text)]
        repeat, size, value = (*parts, 1, 0)[:3] if len(parts) < 2 else (*parts, 0)[:3]
        if repeat < 0 or not 0 <= size <= 8:
            raise Fault("a count from 0 and a size of 0 to 8 are expected", "", 0, len(text))
        if repeat * size > self.room:
            raise self._too_big()
        # GNU as keeps four bytes of the value, whatever the size.
        unit = (value & 0xFFFFFFFF).to_bytes(4, "little")[:size].ljust(size, b"\0")
        self._emit(unit * repeat, "data", statement)

    def _org(self, text: str, statement: Statement) -> None:
        parts = [part for _, part in split_operands(text)]
        fill = self._number(parts[1], "the fill") & 255 if len(parts) > 1 else 0
        target = self.evaluate(parse_expression(parts[0]))
        if isinstance(target, int) and not 0 <= target <= MAX_IMAGE:
            if target < 0:
                raise Fault("a negative offset", "", 0, len(parts[0]))
            raise self._too_big()
        self._tail(Tail("org", target=target, fill=fill), "data", statement)

    def _section(self, name: str, role: str) -> Section:
        section = self.sections.get(name)
        if section is None:
            section = self.sections[name] = Section(name, role)
        return section

    def _change(self, section: Section) -> None:
        self.previous, self.section = self.section, section
        self.fragment = section.fragments[-1]

    def _switch(self, name: str) -> Callable[[str, Statement], None]:
        def handler(text: str, statement: Statement) -> None:
            if text and text != "0":
                raise Fault("subsections are not supported", "use .section", 0, len(text))
            self._change(self._section(name, name[1:]))

        return handler

    def _named_section(self, text: str) -> Section:
        parts = [part for _, part in split_operands(text)]
        name = parts[0].strip('"')
        if not name or " " in name:
            raise Fault("a section name is expected", '.section .rodata, "a"', 0, max(1, len(text)))
        flags = parts[1].strip('"') if len(parts) > 1 and parts[1].startswith('"') else None
        nobits = any("nobits" in part for part in parts[1:])
        stem = "." + name.lstrip(".").split(".")[0]
        if stem in (".note", ".comment", ".debug", ".eh_frame") or stem.startswith(".debug_"):
            role = "none"
        elif stem == ".text" or (flags and "x" in flags):
            role = "text"
        elif stem == ".bss" or nobits:
            role = "bss"
        elif flags is not None and "a" not in flags and stem not in (".data", ".rodata"):
            role = "none"
        else:
            role = "data"
        return self._section(name, role)

    def _section_directive(self, text: str, statement: Statement) -> None:
        self._change(self._named_section(text))

    def _pushsection(self, text: str, statement: Statement) -> None:
        section = self._named_section(text)
        self.section_stack.append((self.section, self.previous))
        if len(self.section_stack) > MAX_DEPTH:
            raise Fault("too many .pushsection", "write .popsection")
        self._change(section)

    def _popsection(self, text: str, statement: Statement) -> None:
        if not self.section_stack:
            raise Fault(".popsection without .pushsection")
        section, previous = self.section_stack.pop()
        self._change(section)
        self.previous = previous

    def _previous(self, text: str, statement: Statement) -> None:
        self._change(self.previous)

    def _comm(self, text: str, statement: Statement) -> None:
        parts = [part for _, part in split_operands(text)]
        if len(parts) < 2 or not _NAME.match(parts[0]):
            raise Fault("a name and a size are expected", ".comm NAME, 8, 8", 0, max(1, len(text)))
        self._may_define(parts[0])
        size = self._number(parts[1], "the size")
        alignment = self._number(parts[2], "the alignment") if len(parts) > 2 else min(size, 16)
        if not 0 <= size <= self.room:
            raise self._too_big()
        alignment = max(1, alignment)
        if alignment > MAX_IMAGE or alignment & (alignment - 1):
            alignment = 1 << min(alignment.bit_length() - 1, 12)
        symbol = self._symbol(parts[0])
        if symbol.value is not None:
            return
        back, previous = self.section, self.previous
        self._change(self._section(".bss.common", "bss"))
        self.section.alignment = max(self.section.alignment, alignment)
        self._tail(Tail("align", alignment=alignment), "data", statement)
        symbol.value, symbol.label = self.here(), True
        symbol.place = (statement.file, statement.line)
        self._emit(bytes(size), "data", statement)
        self._change(back)
        self.previous = previous

    def _intel_syntax(self, text: str, statement: Statement) -> None:
        if text.strip() != "noprefix":
            raise Fault("only '.intel_syntax noprefix' is read", "", 0, max(1, len(text)))

    def _refused(self, name: str) -> Callable[[str, Statement], None]:
        def handler(text: str, statement: Statement) -> None:
            if name == ".att_syntax":
                raise Fault("AT&T syntax is not read", "write .intel_syntax noprefix")
            raise Fault(f"{name}: this machine has 64-bit mode only", "")

        return handler

    def _stray(self, name: str) -> Callable[[str, Statement], None]:
        def handler(text: str, statement: Statement) -> None:
            raise DirectiveFault(f"{name} without its beginning")

        return handler

    def _error(self, text: str, statement: Statement) -> None:
        message = string_bytes(text).decode("utf-8", "replace") if text[:1] == '"' else text
        raise Fault(message or ".err was reached")

    def _end(self, text: str, statement: Statement) -> None:
        self.frames.clear()
        self.conditions.clear()

    # ------------------------------------------------------------------ includes

    def _include(self, text: str, statement: Statement) -> None:
        wanted = string_bytes(text).decode("utf-8", "surrogateescape")
        here = Path(statement.file).parent
        places = [here, *self.include]
        if "\0" in wanted or not wanted:
            raise Fault("a file name is expected", "", 0, len(text))
        for folder in places:
            path = folder / wanted
            try:
                content = path.read_text(encoding="utf-8", errors="surrogateescape")
            except (OSError, ValueError):
                continue
            name = str(path)
            if any(frame.kind == "file" and frame.name == name for frame in self.frames):
                raise Fault(f"'{wanted}' includes itself", "remove one .include", 0, len(text))
            if sum(frame.kind == "file" for frame in self.frames) > MAX_DEPTH:
                raise Fault("too many files include each other", "", 0, len(text))
            self.read_text(content, name, statement)
            return
        known: list[str] = []
        for folder in places:
            try:
                known += [p.name for p in folder.iterdir() if p.suffix in (".inc", ".s")]
            except OSError:
                continue
        hint = did_you_mean(wanted, known) or "add its folder to the include path"
        raise Fault(f"'{wanted}' is not found", hint, 0, len(text))

    # ------------------------------------------------------------------ macros and repeats

    def _block(self, opens: Iterable[str], closes: str, opening: Statement) -> list[Statement]:
        """The statements up to the one that closes the block."""
        frame = self.frames[-1]
        depth, begin = 1, frame.position
        for index in range(begin, len(frame.statements)):
            match = _OPENS.match(frame.statements[index].text)
            if not match:
                continue
            word = match[1].lower()
            if word in opens:
                depth += 1
            elif word == closes:
                depth -= 1
                if depth == 0:
                    frame.position = index + 1
                    self.budget -= index - begin
                    return frame.statements[begin:index]
        frame.position = len(frame.statements)
        word = opening.text.split()[0]
        raise DirectiveFault(f"this {word} is never closed", f"write .{closes}")

    def _skip_block(self, statement: Statement) -> None:
        match = _OPENS.match(statement.text)
        assert match
        word = match[1].lower()
        if word == "macro":
            self._block(("macro",), "endm", statement)
        elif word in ("rept", "irp", "irpc"):
            self._block(("rept", "irp", "irpc"), "endr", statement)

    def _macro(self, text: str, statement: Statement) -> None:
        match = re.match(r"([A-Za-z_.$][\w.$]*)[\s,]*", text)
        body = self._block(("macro",), "endm", statement)
        if not match:
            raise Fault("a macro needs a name", ".macro NAME a, b=5", 0, max(1, len(text)))
        try:
            parameters = parse_parameters(text[match.end() :])
        except Fault as error:
            raise _copy(error, match.end()) from None
        name = match[1].lower()
        if name in self.macros:
            msg = f"macro '{name}' is already defined"
            raise Fault(msg, ".purgem forgets a macro", 0, len(name))
        self.macros[name] = Macro(match[1], parameters, body)
        self._update_shadowed()

    def _purgem(self, text: str, statement: Statement) -> None:
        if text.lower() not in self.macros:
            msg = f"no macro '{text}'"
            raise Fault(msg, did_you_mean(text, self.macros), 0, max(1, len(text)))
        del self.macros[text.lower()]
        self._update_shadowed()

    def _update_shadowed(self) -> None:
        # A macro may bear the name of an instruction or a prefix; remembered bytes are then wrong.
        self.shadowed = any(name in BY_NAME or name in PREFIXES for name in self.macros)

    def _call(self, macro: Macro, text: str, statement: Statement) -> None:
        depth = statement.origin.depth + 1 if statement.origin else 1
        if depth > MAX_DEPTH:
            msg = f"macro '{macro.name}' calls itself more than {MAX_DEPTH} times"
            raise Fault(msg, "end the recursion with .if")
        if self.pending:
            self._flush_prefixes()
        values = parse_arguments(macro, text.strip())
        expansion = Expansion(macro.name, statement, depth)
        statements = substitute(macro.body, values, self.macro_calls, expansion)
        self.macro_calls += 1
        frame = _Frame(statements, "macro", macro.name, conditions=len(self.conditions))
        frame.origin = expansion
        self.frames.append(frame)

    def _exitm(self, text: str, statement: Statement) -> None:
        if not any(frame.kind == "macro" for frame in self.frames):
            raise Fault(".exitm outside of a macro")
        while self.frames:
            frame = self.frames.pop()
            if frame.kind == "macro":
                del self.conditions[frame.conditions :]
                self._update_skipping()
                return

    def _rept(self, text: str, statement: Statement) -> None:
        body = self._block(("rept", "irp", "irpc"), "endr", statement)
        count = self._number(text, "the count")
        if count < 0:
            raise Fault("a negative count", "", 0, len(text))
        if count and body:
            self._push_repeat(body, count)

    def _push_repeat(self, body: list[Statement], count: int) -> None:
        if len(self.frames) > 4 * MAX_DEPTH:
            raise Fault("blocks are nested too deeply")
        frame = _Frame(body, "rept", repeat=count, conditions=len(self.conditions))
        self.frames.append(frame)

    def _irp(self, text: str, statement: Statement) -> None:
        body = self._block(("rept", "irp", "irpc"), "endr", statement)
        match = re.match(r"([A-Za-z_.$][\w.$]*)\s*,?\s*", text)
        if not match:
            raise Fault("a parameter name is expected", ".irp r, 1, 2, 3")
        rest = text[match.end() :]
        if statement.text.split()[0].lower().endswith("c"):
            values = list(rest.strip().strip('"')) or [""]
        else:
            listed = Macro("", parse_parameters("a:vararg"), [])
            joined = parse_arguments(listed, rest)["a"]
            values = [piece for _, piece in split_operands(joined)]
            values = [word for piece in values for word in (piece.split() or [""])]
        if len(values) * len(body) > self.budget:
            raise Fault("the block repeats too often")
        out: list[Statement] = []
        for value in values:
            out += substitute(body, {match[1]: value}, self.macro_calls, None)
        if out:
            self._push_repeat(out, 1)

    # ------------------------------------------------------------------ conditions

    def _update_skipping(self) -> None:
        self.skipping = bool(self.conditions) and not self.conditions[-1].active

    def _conditional(self, name: str) -> Callable[[str, Statement], None]:
        def handler(text: str, statement: Statement) -> None:
            try:
                self._condition(name, text, statement)
            finally:
                self._update_skipping()

        return handler

    def _condition(self, name: str, text: str, statement: Statement) -> None:
        stack = self.conditions
        if name.startswith(".if"):
            if len(stack) > 4 * MAX_DEPTH:
                raise Fault("conditions are nested too deeply")
            condition = _Condition(False, True, not self.skipping, statement)
            stack.append(condition)
            if condition.parent:
                truth = self._truth(name, text)
                condition.active = condition.taken = truth
            return
        if not stack:
            raise DirectiveFault(f"{name} without .if")
        condition = stack[-1]
        if name == ".endif":
            stack.pop()
        elif condition.otherwise:
            raise DirectiveFault(f"{name} after .else")
        elif name == ".else":
            condition.active = condition.parent and not condition.taken
            condition.taken = condition.otherwise = True
        else:
            condition.active = False
            if condition.parent and not condition.taken:
                condition.active = condition.taken = self._truth(".if", text)

    def _truth(self, name: str, text: str) -> bool:
        if name in (".ifdef", ".ifndef", ".ifnotdef"):
            if not _NAME.match(text):
                raise Fault("a symbol is expected", "", 0, max(1, len(text)))
            symbol = self.symbols.get(text)
            return (symbol is not None and symbol.value is not None) == (name == ".ifdef")
        if name in (".ifb", ".ifnb"):
            return (not text.strip()) == (name == ".ifb")
        if name in (".ifc", ".ifnc", ".ifeqs", ".ifnes"):
            parts = [part for _, part in split_operands(text)]
            if len(parts) != 2:
                raise Fault("two strings are expected", "", 0, max(1, len(text)))
            same = parts[0].strip("'\"") == parts[1].strip("'\"")
            return same == (name in (".ifc", ".ifeqs"))
        value = self._number(text, "a condition")
        return {
            ".if": value != 0,
            ".ifne": value != 0,
            ".ifeq": value == 0,
            ".ifgt": value > 0,
            ".ifge": value >= 0,
            ".iflt": value < 0,
            ".ifle": value <= 0,
        }[name]

    # ------------------------------------------------------------------ the image

    def finish(self) -> Program:
        """Addresses, fixups and the program.

        Raises:
            AssemblyError: everything that went wrong since the start.
        """
        self._layout()
        if not self.diagnostics:
            self._check_bare()
            self._fix()
        else:
            self._check_bare()
            self._check_undefined()
        if self.diagnostics:
            order = {name: index for index, name in enumerate(self.source)}

            def place(diagnostic: Diagnostic) -> tuple[int, int, int]:
                return order.get(diagnostic.file, 0), diagnostic.line, diagnostic.column

            raise AssemblyError(sorted(self.diagnostics.values(), key=place))
        return self._program()

    def _layout(self) -> None:
        faults: list[tuple[Any, Fault]] = []
        for section in self.sections.values():
            for fragment in section.fragments:
                tail = fragment.tail
                if tail is None:
                    continue
                try:
                    tail.target = settle(tail.target)
                    if tail.kind == "org":
                        self._check_org(tail, section)
                except Fault as fault:
                    faults.append((tail.where, fault))
                    tail.target = 0
            relax(section, faults)
        for statement, late in faults:
            self.report(statement, late)
        address = IMAGE_BASE
        for role in ("text", "data", "bss", "none"):
            address = -(-address // PAGE) * PAGE
            for section in self._of(role):
                address = -(-address // section.alignment) * section.alignment
                size = section.size
                section.address = address
                for fragment in section.fragments:
                    fragment.address += address
                address += size
        if address - IMAGE_BASE > MAX_IMAGE and not faults:
            assert self.statement is not None
            error = self._too_big()
            self.report(self.statement, Fault(error.message, error.hint))

    def _check_org(self, tail: Tail, section: Section) -> None:
        if isinstance(tail.target, Linear):
            atoms = tail.target.terms
            atom = atoms[0][0]
            inside = isinstance(atom, Fragment) and atom.section is section
            if len(atoms) != 1 or atoms[0][1] != 1 or not inside:
                raise Fault(".org needs a number or a label of this section plus a number")

    def _of(self, role: str) -> list[Section]:
        found = [section for section in self.sections.values() if section.role == role]
        order = [f".{role}", ".rodata"]

        def rank(section: Section) -> int:
            name = section.name
            return order.index(name) if name in order else 2 + (not name.startswith(".rodata."))

        return sorted(found, key=rank)

    def _check_bare(self) -> None:
        for amount, statement in self.bare:
            try:
                value = settle(amount)
            except Fault:
                continue  # reported where the value is used
            if isinstance(value, int) and isinstance(amount, Linear):
                symbol = next((a for a, _ in amount.terms if isinstance(a, Symbol)), None)
                if symbol is None:
                    continue
                file, line = symbol.place
                found = re.search(
                    rf"(?<![\w.$]){re.escape(symbol.name)}(?![\w.$])", statement.text
                )
                msg = f"'{symbol.name}' is a number only from {file}:{line} on; here it is memory"
                hint = f"move the .equ above, or write [{symbol.name}] for memory"
                at = found.start() if found else 0
                self.report(statement, Fault(msg, hint, at, len(symbol.name)))

    def _check_undefined(self) -> None:
        for _, _, _, fixup, statement in self.fixups:
            try:
                settle(fixup.amount)
            except Fault as fault:
                self.report(statement, fault)

    def _fix(self) -> None:
        bare = {id(statement) for _, statement in self.bare}
        for fragment, where, end, fixup, statement in self.fixups:
            try:
                value = number(settle(fixup.amount))
                self._check_relative(fixup)
            except UndefinedFault as fault:
                if id(statement) in bare:
                    name = fault.symbol.name
                    fault.hint = self._near_symbol(name) or (
                        f"memory is [{name}], an address OFFSET {name}; a number needs its .equ"
                        " above"
                    )
                self.report(statement, fault)
                continue
            except Fault as fault:
                self.report(statement, fault)
                continue
            if fixup.pc_relative:
                value -= fragment.address + end
            size = fixup.size
            low = -(1 << 8 * size - 1)
            high = -low if fixup.kind == "signed" else -2 * low
            if size < 8 and not low <= value < high:
                if fixup.pc_relative:
                    msg = f"the target is {value} bytes away, this reaches {low} to {high - 1}"
                    hint = "jump over a jmp" if size == 1 else ""
                else:
                    msg, hint = f"the value {value:#x} does not fit in {size} bytes", ""
                self.report(statement, Fault(msg, hint))
                continue
            at = where + fixup.offset
            code = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
            fragment.data[at : at + size] = code
        for section in self.sections.values():
            for fragment in section.fragments:
                self._fill_tail(fragment)

    def _check_relative(self, fixup: Fixup) -> None:
        if fixup.pc_relative:
            amount = settle(fixup.amount)
            if not isinstance(amount, int) and not is_address(amount):
                raise Fault("a place is expected, this is a distance")

    def _fill_tail(self, fragment: Fragment) -> None:
        tail = fragment.tail
        if tail is None:
            return
        if tail.kind == "jump":
            code = tail.long if tail.grown else tail.short
            width = 4 if tail.grown else 1
            end = fragment.address + len(fragment.data) + len(code) + width
            try:
                distance = number(tail.target) - end
            except Fault as fault:
                self.report(tail.where, fault)
                return
            if not -(1 << 8 * width - 1) <= distance < 1 << 8 * width - 1:
                self.report(tail.where, Fault("the branch target is out of range"))
                return
            fragment.data += code + (distance & ((1 << 8 * width) - 1)).to_bytes(width, "little")
        elif tail.fill is None:
            fragment.data += b"".join(nops(tail.size))
        else:
            fragment.data += bytes((tail.fill,)) * tail.size

    def _program(self) -> Program:
        segments: list[Segment] = []
        for role in ("text", "data", "bss"):
            sections = self._of(role)
            total = sum(section.size for section in sections)
            if not sections or (not total and role != "text"):
                continue
            base = sections[0].address
            data = bytearray()
            for section in sections:
                data += bytes(section.address - base - len(data))
                for fragment in section.fragments:
                    data += fragment.data
            segments.append(
                Segment(base, bytes(data), f".{role}", exec=role == "text", write=role != "text")
            )
        symbols: dict[str, int] = {}
        equates: dict[str, int] = {}
        for name, symbol in self.symbols.items():
            if symbol.value is None:
                continue
            try:
                settled = settle(symbol.value)
                value = number(settled)
            except Fault:
                continue  # an unused .equ of something undefined
            symbols[name] = value
            if isinstance(settled, int) or not is_address(settled):
                equates[name] = value
        text = self.sections[".text"]
        return Program(
            name=self.name,
            entry=symbols.get("_start", text.address),
            segments=tuple(segments),
            symbols=symbols,
            equates=equates,
            lines=self._lines(),
            source=self.source,
            expectations=tuple(self.expectations),
        )

    def _lines(self) -> tuple[Line, ...]:
        lines: list[Line] = []
        for fragment, where, size, kind, statement in self.records:
            if fragment.section.role == "none":
                continue
            origin = statement.origin
            place = statement
            while origin is not None:
                place = origin.call
                origin = place.origin
            file, line, text = place.file, place.line, statement.text
            if where >= 0:
                if size:
                    lines.append(Line(fragment.address + where, size, file, line, text, kind))
                continue
            tail = fragment.tail
            assert tail is not None
            at = fragment.address + len(fragment.data) - tail.size
            if not tail.size:
                continue
            if tail.kind == "align" and tail.fill is None:
                for piece in nops(tail.size):
                    lines.append(Line(at, len(piece), file, line, text, kind))
                    at += len(piece)
            else:
                lines.append(Line(at, tail.size, file, line, text, kind))
        lines.sort(key=lambda line: line.addr)
        return tuple(lines)


def assemble(text: str, name: str = "<stdin>", include: Sequence[str | Path] = ()) -> Program:
    """Assemble source text.

    Args:
        text: the source.
        name: what errors call it; `.include` also looks in its folder.
        include: folders for `.include`; `guests/include` always follows.

    Raises:
        AssemblyError: with every error of the source.
    """
    assembler = Assembler(name, [Path(folder) for folder in include])
    assembler.read_text(text, name)
    assembler.run()
    return assembler.finish()


def assemble_file(path: str | Path, include: Sequence[str | Path] = ()) -> Program:
    """Assemble a file; see `assemble`.

    Raises:
        AssemblyError: with every error of the source.
        LoadError: the file cannot be read.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except (OSError, ValueError) as error:
        msg = f"{path}: {getattr(error, 'strerror', None) or error}"
        raise LoadError(msg) from error
    return assemble(text, str(path), include)
