"""What an assembly knows: symbols, sections, errors; and how an expression is valued and bytes kept."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import attrs

from vpmu_emu.asm.encode import PREFIXES, Fixup
from vpmu_emu.asm.errors import Diagnostic, Fault, did_you_mean
from vpmu_emu.asm.nodes import (
    REGISTERS,
    RESERVED,
    SLOT,
    Binary,
    Bracket,
    Indexed,
    Local,
    Name,
    Number,
    Prefixed,
    Register,
    Unary,
    Value,
)
from vpmu_emu.asm.parser import parse_expression
from vpmu_emu.asm.program import Expectation
from vpmu_emu.asm.reader import Expansion, Macro, Statement
from vpmu_emu.asm.sections import (
    MAX_IMAGE,
    Amount,
    Deferred,
    Fragment,
    Linear,
    Section,
    Symbol,
    Tail,
    UndefinedFault,
    combine,
    known,
    negate,
    symbol_amount,
    symbols_of,
)
from vpmu_emu.data import guests_dir
from vpmu_emu.errors import ConfigError
from vpmu_emu.numerals import shown

MAX_STATEMENTS = 300_000  # some seconds, at the slowest of them
MAX_DEPTH = 100
MAX_TEXT = 16 << 20  # characters of all sources, and of what macros make of them
MAX_OPEN = 100_000  # operations that wait for the end of the source
MAX_SHOWN = 100
MAX_FAULTS = 2000


_DEFSYM = "--defsym"  # the place of what it defines
_DEFINED = re.compile(r"[A-Za-z_.$][A-Za-z0-9_.$]*")


def check_defsym(defsym: Mapping[str, int]) -> None:
    """Whether each is a name that a symbol can have, and a value of 64 bits, signed or not.

    Raises:
        ConfigError: it is not.
    """
    for name, value in defsym.items():
        if not _DEFINED.fullmatch(name):
            raise ConfigError("defsym", f"{shown(name)} is no name of a symbol", "letters, digits, _ . $")
        if what := RESERVED.get(name.lower()) or (name == "." and "the place of the next byte"):
            raise ConfigError("defsym", f"'{name}' is {what}", "another name")
        if not -(1 << 63) <= value < 1 << 64:
            raise ConfigError("defsym", f"{name}: {shown(value)} does not fit 64 bits")


class TooBigError(Exception):
    """The program cannot be finished; reading stops."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


@attrs.define(eq=False)
class Frame:
    """Statements being read: a file, a macro call or a repeated block."""

    statements: list[Statement]
    kind: str
    name: str = ""
    position: int = 0
    repeat: int = 1
    conditions: int = 0
    origin: Expansion | None = None


@attrs.define(eq=False)
class Condition:
    """One `.if`: read now, ever read, inside of a read one; `otherwise` after its `.else`."""

    active: bool
    taken: bool
    parent: bool
    statement: Statement
    otherwise: bool = False


def moved(fault: Fault, by: int) -> Fault:
    """A copy of the fault `by` characters further right, of no special kind."""
    copy = Fault(fault.message, fault.hint, fault.at + by, fault.length)
    copy.near = fault.near
    return copy


def _is_symbol(value: Linear) -> bool:
    # Another name for something that need not be defined if nobody asks.
    return len(value.terms) == 1 and value.terms[0][1] == 1 and not isinstance(value.terms[0][0], Deferred)


def _first(symbol: Symbol) -> str:
    file, line = symbol.place
    return f"by {file}" if file == _DEFSYM else f"first at {file}:{line}"


_FOREIGN = "its text is not shown where CI is set: the file is outside of the guest's folder"
_DEFINES = re.compile(r"\s*\.(?:equ|set)\s+([A-Za-z_.$][\w.$]*)\s*,|([A-Za-z_.$][\w.$]*):")
_MACRO = re.compile(r"\s*\.(?:macro\s+([A-Za-z_.$][\w.$]*)|endm)")


@lru_cache(maxsize=4)
def _included(folders: tuple[Path, ...]) -> dict[str, str]:
    """Names that include files define, and how one gets them."""
    found: dict[str, str] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.inc")) if folder.is_dir() else ():
            with suppress(OSError):
                text = path.read_bytes()[:MAX_TEXT].decode("utf-8", "replace")
                macro = ""
                for line in text.split("\n"):
                    if match := _MACRO.match(line):
                        macro = match[1] or ""
                    elif match := _DEFINES.match(line):
                        how = f'.include "{path.name}" defines it'
                        if macro:
                            how = f"macro {macro} of \"{path.name}\" makes it: write {macro} once in .data"
                        found.setdefault(match[1] or match[2], how)
    return found


class Core:
    """What one assembly knows so far."""

    def __init__(self, name: str, include: Sequence[Path], defsym: Mapping[str, int]) -> None:
        self.name = name
        self.include = [*include, guests_dir() / "include"]
        self.source: dict[str, list[str]] = {}
        self.expectations: list[Expectation] = []
        self.diagnostics: dict[tuple[Any, ...], Diagnostic] = {}
        # As GNU as keeps them: 64 bits with a sign.
        self.given = {
            name: Symbol(name, value - (value >> 63 << 64) if value > 0 else value, place=(_DEFSYM, 0))
            for name, value in defsym.items()
        }
        self.symbols: dict[str, Symbol] = dict(self.given)
        self.conditional: set[str] = set()  # names of .ifdef and .ifndef
        self.sections: dict[str, Section] = {}
        self.section = self._section(".text", "text")
        self.section_stack: list[tuple[Section, Section]] = []
        self.previous = self.section
        self.fragment = self.section.fragments[-1]
        self.macros: dict[str, Macro] = {}
        self.macro_calls = 0
        self.globals: set[str] = set()
        self.weak: set[str] = set()
        self.slots: dict[str, Symbol] = {}
        self.common: set[Symbol] = set()
        self.files: set[int] = set()
        self.in_frame = False
        self.sizes: list[tuple[Amount, Statement]] = []
        self.computed: list[tuple[Amount, Statement]] = []
        self.shadowed = 0
        self.frames: list[Frame] = []
        self.conditions: list[Condition] = []
        self.skipping = False
        self.locals: dict[int, Amount] = {}
        self.forward: dict[int, Symbol] = {}
        self.pending: list[str] = []
        self.records: list[tuple[Fragment, int, int, str, Statement]] = []
        self.fixups: list[tuple[Fragment, int, int, Fixup, Statement]] = []
        self.bare: list[tuple[Amount, Statement]] = []
        self.limit = self.budget = MAX_STATEMENTS
        self.text = MAX_TEXT
        self.open = MAX_OPEN
        self.faults = 0
        self.stopped = False
        self.undefined: dict[tuple[Any, ...], str] = {}
        self.room = MAX_IMAGE
        self.statement: Statement | None = None
        self.directives: dict[str, Callable[[str, Statement], None]] = {}

    def report(self, statement: Statement, fault: Fault) -> None:
        """Turn a fault of a statement into a diagnostic."""
        self.faults += 1
        if len(self.diagnostics) >= MAX_FAULTS:
            return
        at, hint = fault.at, fault.hint
        undefined = ""
        if isinstance(fault, UndefinedFault):
            name = fault.symbol.name
            if "\0" in name:
                fault.message = f"no label '{name.split(chr(0))[0]}:' follows"
                name = name.split("\0")[0] + "f"
            found = re.search(rf"(?<![\w.$]){re.escape(name)}(?![\w.$])", statement.text)
            at = found.start() if found else 0
            undefined = name
        elif fault.near and not hint and len(self.diagnostics) < MAX_SHOWN:
            hint = did_you_mean(*fault.near)
        if not hint and not undefined and statement.origin and statement.origin.empty:
            names = ", ".join(f"'{name}'" for name in statement.origin.empty)
            hint = f"macro '{statement.origin.macro}' was called without {names}"
        message, source = fault.message, statement.source
        if self._foreign(statement.file):
            # What others read must not show lines of a file that a guest only names.
            message, hint, source = "this line does not assemble", _FOREIGN, ""
        column = statement.column + max(at, 0)
        origin = statement.origin
        chain = origin.chain() if origin else ()
        key = (statement.file, statement.line, column, message)
        if key not in self.diagnostics:
            self.diagnostics[key] = Diagnostic(
                statement.file,
                statement.line,
                column,
                max(1, fault.length),
                message,
                hint,
                source,
                chain,
            )
            if undefined and hint != _FOREIGN:
                self.undefined[key] = undefined

    def _foreign(self, file: str) -> bool:
        """Whether CI is set, and the file neither the guest's nor in its folder or one for includes."""
        if file == self.name or not os.environ.get("CI"):
            return False
        path = Path(file).resolve()
        return not any(path.is_relative_to(f.resolve()) for f in (Path(self.name).parent, *self.include))

    def shown(self) -> list[Diagnostic]:
        """The first errors in the order of the source, with their hints."""
        order = {name: index for index, name in enumerate(self.source)}

        def place(key: tuple[Any, ...]) -> tuple[int, int, int]:
            found = self.diagnostics[key]
            return order.get(found.file, 0), found.line, found.column

        first = sorted(self.diagnostics, key=place)[:MAX_SHOWN]
        hints = {key: self._near_symbol(self.undefined[key]) for key in first if key in self.undefined}
        return [
            attrs.evolve(self.diagnostics[key], hint=hints.get(key) or self.diagnostics[key].hint)
            for key in first
        ]

    def _near_symbol(self, name: str) -> str:
        included = _included(tuple(self.include))
        if name in included:
            return included[name]
        defined = [s.name for s in self.symbols.values() if s.value is not None]
        near = did_you_mean(name, defined) or did_you_mean(name, REGISTERS)
        if not near and (near := did_you_mean(name, included)):
            near += " " + included[near.split("'")[1]]
        return near

    def _symbol(self, name: str) -> Symbol:
        symbol = self.symbols.get(name)
        if symbol is None:
            symbol = self.symbols[name] = Symbol(name)
        return symbol

    def here(self) -> Amount:
        """The address of the next byte."""
        return Linear(len(self.fragment.data) + len(self.pending), ((self.fragment, 1),))

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
        name = match[1].strip('"')
        try:
            self._may_define(name)
            symbol = self._symbol(name)
            if symbol.value is not None:
                msg = f"'{name}' is already defined"
                raise Fault(msg, _first(symbol))
        except Fault as fault:
            self.report(statement, Fault(fault.message, fault.hint, match.start(1), len(name)))
            return
        symbol.value, symbol.label = self.here(), True
        symbol.place = (statement.file, statement.line)

    def _may_define(self, name: str) -> None:
        if what := RESERVED.get(name.lower()):
            raise Fault(f"'{name}' is {what}", "choose another name", 0, len(name))
        if name == ".":
            raise Fault("'.' cannot be set", "use .org or .skip")

    def _assign(
        self, name: str, text: str, at: int, statement: Statement, once: bool = False
    ) -> None:
        self._may_define(name)
        symbol = self._symbol(name)
        if symbol.label or symbol.once or (once and symbol.value is not None):
            msg = f"'{name}' is already defined"
            raise Fault(msg, _first(symbol), 0, len(name))
        try:
            value = self.evaluate(parse_expression(text.strip()))
        except UndefinedFault:
            raise
        except Fault as fault:
            raise moved(fault, at) from None
        if isinstance(value, Linear) and any(atom is symbol for atom, _ in value.terms):
            msg = f"'{name}' is defined through itself"
            raise Fault(msg, "give it a first value above", 0, len(name))
        if symbol.value is not None:
            # What named it before its first value keeps that one (symbol_clone_if_forward_ref()).
            symbol = self.symbols[name] = Symbol(name)
        symbol.value, symbol.once = value, once
        if isinstance(value, Linear) and not _is_symbol(value):
            self.computed.append((value, statement))
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
            if node.name.endswith(SLOT):
                msg = "@GOTPCREL goes with rip"
                raise Fault(msg, f"write {node.name[: -len(SLOT)]}@GOTPCREL[rip]", node.at, len(node.name))
            symbol = self.symbols.get(node.name)
            if symbol is None:
                symbol = self._symbol(node.name)
            symbol.asked = True
            return symbol_amount(symbol)
        if isinstance(node, Local):
            return self._local(node)
        if isinstance(node, Binary):
            left, right = self.evaluate(node.left), self.evaluate(node.right)
            try:
                value = combine(node.op, left, right)
                if isinstance(value, Linear) and isinstance(value.terms[-1][0], Deferred):
                    self._open_more()
                return value
            except UndefinedFault:
                raise
            except Fault as fault:
                raise moved(fault, node.at) from None
        if isinstance(node, Unary):
            return negate(node.op, self.evaluate(node.node))
        if isinstance(node, Prefixed) and node.word == "offset":
            return self.evaluate(node.node)
        if isinstance(node, Register):
            raise Fault(f"'{node.name}' is a register, not a number", "", node.at, len(node.name))
        at = node.at if isinstance(node, (Bracket, Indexed, Prefixed)) else 0
        raise Fault("an address is not a number", "", at)

    def _open_more(self) -> None:
        self.open -= 1
        if self.open < 0:
            msg = f"more than {MAX_OPEN} operations on names without a number"
            raise TooBigError(msg, "define the names above")

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

    def _number(self, text: str, what: str, compares: bool = False) -> int:
        """An expression that must be known now; conditions may compare labels."""
        value = self.evaluate(parse_expression(text))
        value = known(value) if compares else value
        if not isinstance(value, int):
            names = [symbol.name for symbol in symbols_of(value)]
            hint = "its value depends on branches or alignments in between"
            if names and self.faults < MAX_SHOWN:
                hint = did_you_mean(names[0], [s.name for s in self.symbols.values() if s.value])
                hint = hint or f"define '{names[0].split(chr(0))[0]}' above"
            msg = f"{what} must be a number known here"
            raise Fault(msg, hint, 0, len(text))
        return value

    def _section(self, name: str, role: str) -> Section:
        section = self.sections.get(name)
        if section is None:
            section = self.sections[name] = Section(name, role)
        return section

    def _change(self, section: Section) -> None:
        self.previous, self.section = self.section, section
        self.fragment = section.fragments[-1]

    def _emit(self, code: bytes, kind: str, statement: Statement) -> int:
        fragment = self.fragment
        size = len(code)
        self.room -= size
        if self.room < 0:
            raise self._too_big()
        if self.section.role == "bss" and code.count(0) != size:
            raise Fault("only zeros can be in .bss", "put it in .data")
        data = fragment.data
        where = len(data)
        data += code
        self.records.append((fragment, where, size, kind, statement))
        return where

    @staticmethod
    def _too_big() -> TooBigError:
        return TooBigError(
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

    def _update_skipping(self) -> None:
        self.skipping = bool(self.conditions) and not self.conditions[-1].active
