"""What is read next: files, macros, repeats, conditions."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable
from pathlib import Path

import attrs

from vpmu_emu.asm.core import MAX_DEPTH, MAX_TEXT, Condition, Core, Frame, TooBigError
from vpmu_emu.asm.encode import PREFIXES
from vpmu_emu.asm.errors import DirectiveFault, Fault, did_you_mean
from vpmu_emu.asm.files import read_bytes, text_of
from vpmu_emu.asm.program import Expectation
from vpmu_emu.asm.reader import (
    NAME,
    SYMBOL,
    Expansion,
    Macro,
    Statement,
    listed_characters,
    listed_values,
    parse_arguments,
    parse_parameters,
    read,
    scrub,
    split_operands,
    string_bytes,
    substitute,
)
from vpmu_emu.errors import LoadError
from vpmu_emu.tables.instructions import BY_NAME

_NAME = re.compile(rf"{SYMBOL}\Z")
_TOKEN = re.compile(NAME)
# As buffer_and_nest() of GNU as finds them: behind labels that are names.
_NESTS = re.compile(
    rf"((?:{NAME}[ \t]*:[ \t]*)*)\.(rept|rep|irpc|irp|irepc|irep|macro|endr|endm)(?![\w.$]|[ \t]*:)",
    re.IGNORECASE,
)
_REPEATS = ("rept", "rep", "irp", "irpc", "irep", "irepc")


class Blocks(Core):
    """Directives that decide what is read next."""

    def read_text(self, text: str, name: str, statement: Statement | None = None) -> None:
        """Push a source to be read next."""
        self._read_more(len(text))
        source = read(text, name)
        self.source[name] = source.lines
        self.expectations += [Expectation(name, line, words) for line, words in source.expectations]
        for where, fault in source.faults:
            self.report(where, fault)
        self.frames.append(Frame(source.statements, "file", name, conditions=len(self.conditions)))

    def _read_more(self, characters: int) -> None:
        self.text -= characters
        if self.text < 0:
            msg = f"more than {MAX_TEXT >> 20} million characters"
            raise TooBigError(msg, "data of this size belongs into memory by a loop, or .skip")

    def _include(self, text: str, statement: Statement) -> None:
        wanted = string_bytes(text).decode("utf-8", "surrogateescape")
        here = Path(statement.file).parent
        places = [here, *self.include]
        if "\0" in wanted or not wanted:
            raise Fault("a file name is expected", "", 0, len(text))
        for folder in places:
            path = folder / wanted
            name = str(path)
            try:
                content = text_of(read_bytes(path), name)
            except LoadError as error:
                if not isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                    raise Fault(str(error), "", 0, len(text)) from None
                continue
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

    def _block(self, opens: Iterable[str], closes: str, opening: Statement) -> list[Statement]:
        """The statements up to the one that closes the block."""
        frame = self.frames[-1]
        depth, begin = 1, frame.position
        for index in range(begin, len(frame.statements)):
            last = frame.statements[index]
            match = _NESTS.match(last.text) if "." in last.text else None
            if not match:
                continue
            word = match[2].lower()
            if word in opens:
                depth += 1
            elif word == closes:
                depth -= 1
                if depth == 0:
                    frame.position = index + 1
                    self.budget -= index - begin
                    body = frame.statements[begin:index]
                    if labels := match[1].strip():
                        body.append(attrs.evolve(last, text=labels))
                    return body
        frame.position = len(frame.statements)
        word = opening.text.split()[0]
        raise DirectiveFault(f"this {word} is never closed", f"write .{closes}")

    def _macro(self, text: str, statement: Statement) -> None:
        length = max(1, len(text))
        text = scrub(text, 3)
        match = _TOKEN.match(text)
        body = self._block(("macro",), "endm", statement)
        if not match:
            raise Fault("a macro needs a name", ".macro NAME a, b=5", 0, length)
        name = match[0].lower()
        if name in self.directives:
            msg = f"'{name}' is a directive"
            raise Fault(msg, "choose another name", 0, len(name))
        try:
            parameters = parse_parameters(text[match.end() :])
        except Fault as error:
            raise Fault(error.message, error.hint, 0, length) from None
        if name in self.macros:
            msg = f"macro '{name}' is already defined"
            raise Fault(msg, ".purgem forgets a macro", 0, len(name))
        self.macros[name] = Macro(match[0], parameters, body)
        # A macro may bear the name of an instruction or a prefix; remembered bytes are then wrong.
        self.shadowed += name in BY_NAME or name in PREFIXES

    def _purgem(self, text: str, statement: Statement) -> None:
        if text.lower() not in self.macros:
            msg = f"no macro '{text}'"
            raise Fault(msg, did_you_mean(text, self.macros), 0, max(1, len(text)))
        name = text.lower()
        del self.macros[name]
        self.shadowed -= name in BY_NAME or name in PREFIXES

    def _call(self, macro: Macro, text: str, statement: Statement) -> None:
        depth = statement.origin.depth + 1 if statement.origin else 1
        if depth > MAX_DEPTH:
            msg = f"macro '{macro.name}' calls itself more than {MAX_DEPTH} times"
            raise Fault(msg, "end the recursion with .if")
        if self.pending:
            self._flush_prefixes()
        self._read_more(len(macro.parameters) + 4 * len(text))
        values = parse_arguments(macro, text.strip())
        empty = tuple(name for name, value in values.items() if not value)
        expansion = Expansion(macro.name, statement, depth, empty)
        statements = substitute(macro.body, values, self.macro_calls, expansion, self._keep())
        self.macro_calls += 1
        self._read_more(sum(len(s.text) for s in statements))
        frame = Frame(statements, "macro", macro.name, conditions=len(self.conditions))
        frame.origin = expansion
        self.frames.append(frame)

    def _keep(self) -> Container[str]:
        return () if self.shadowed else BY_NAME

    def _exitm(self, text: str, statement: Statement) -> None:
        frame = self.frames[-1]
        if frame.kind == "file":
            raise Fault(".exitm outside of a macro")
        self.frames.pop()
        del self.conditions[frame.conditions :]
        self._update_skipping()

    def _rept(self, text: str, statement: Statement) -> None:
        body = self._block(_REPEATS, "endr", statement)
        count = self._number(text, "the count")
        if count < 0:
            raise Fault("a negative count", "", 0, len(text))
        if count and body:
            self._push_repeat(body, count)

    def _push_repeat(self, body: list[Statement], count: int) -> None:
        if len(self.frames) > 4 * MAX_DEPTH:
            raise Fault("blocks are nested too deeply")
        frame = Frame(body, "rept", repeat=count, conditions=len(self.conditions))
        self.frames.append(frame)

    def _irp(self, text: str, statement: Statement) -> None:
        body = self._block(_REPEATS, "endr", statement)
        match = _TOKEN.match(text)
        if not match:
            raise Fault("a parameter name is expected", ".irp r, 1, 2, 3")
        rest = text[match.end() :].lstrip()
        rest = rest[1:] if rest.startswith(",") else rest
        characters = statement.text.split()[0].lower().endswith("c")
        values = (listed_characters if characters else listed_values)(rest.lstrip())
        if len(values) * len(body) > self.budget:
            raise Fault("the block repeats too often")
        out: list[Statement] = []
        for value in values:
            made = substitute(body, {match[0]: value}, self.macro_calls, None, self._keep())
            self._read_more(sum(len(s.text) for s in made))
            out += made
        if out:
            self._push_repeat(out, 1)

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
            condition = Condition(False, True, not self.skipping, statement)
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
        if text and name in (".else", ".endif"):
            raise Fault(f"something follows {name}", "begin a comment with #", 0, len(text))

    def _truth(self, name: str, text: str) -> bool:
        if name in (".ifdef", ".ifndef", ".ifnotdef"):
            if not _NAME.match(text):
                raise Fault("a symbol is expected", "", 0, max(1, len(text)))
            wanted = text.strip('"')
            symbol = self.symbols.get(wanted)
            self.conditional.add(wanted)
            if symbol is not None:
                symbol.asked = True
            return (symbol is not None and symbol.value is not None) == (name == ".ifdef")
        if name in (".ifb", ".ifnb"):
            if ";" in text:
                raise Fault("';' ends a statement here, even in quotes", "", text.index(";"))
            return (not scrub(text, 3)) == (name == ".ifb")
        if name in (".ifc", ".ifnc"):
            one, comma, other = scrub(text, 3).partition(",")
            if not comma or ";" in text:
                raise Fault("two texts with a comma are expected", "", 0, max(1, len(text)))
            return (one.strip() == other.strip()) == (name == ".ifc")
        if name in (".ifeqs", ".ifnes"):
            parts = [part for _, part in split_operands(text)]
            if len(parts) != 2:
                raise Fault("two strings are expected", "", 0, max(1, len(text)))
            first, second = (string_bytes(part) for part in parts)
            if b"\0" in first + second:
                raise Fault("a string of this condition cannot have a zero in it", "", 0, len(text))
            return (first == second) == (name == ".ifeqs")
        value = self._number(text, "a condition", compares=True)
        return {
            ".if": value != 0,
            ".ifne": value != 0,
            ".ifeq": value == 0,
            ".ifgt": value > 0,
            ".ifge": value >= 0,
            ".iflt": value < 0,
            ".ifle": value <= 0,
        }[name]
