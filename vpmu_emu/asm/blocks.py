"""What is read next: files, macros, repeats, conditions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from vpmu_emu.asm.core import MAX_DEPTH, Condition, Core, Frame, moved
from vpmu_emu.asm.encode import PREFIXES
from vpmu_emu.asm.errors import DirectiveFault, Fault, did_you_mean
from vpmu_emu.asm.program import Expectation
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
from vpmu_emu.tables.instructions import BY_NAME

_NAME = re.compile(r"[A-Za-z_.$][A-Za-z0-9_.$]*\Z")
OPENS = re.compile(r"(?:[\w.$]+\s*:\s*)*\.(rept|irpc?|macro|endr|endm)\b", re.IGNORECASE)


class Blocks(Core):
    """Directives that decide what is read next."""

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
        self.frames.append(Frame(statements, "file", name, conditions=len(self.conditions)))

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

    def _block(self, opens: Iterable[str], closes: str, opening: Statement) -> list[Statement]:
        """The statements up to the one that closes the block."""
        frame = self.frames[-1]
        depth, begin = 1, frame.position
        for index in range(begin, len(frame.statements)):
            match = OPENS.match(frame.statements[index].text)
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
        match = OPENS.match(statement.text)
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
            raise moved(error, match.end()) from None
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
        frame = Frame(statements, "macro", macro.name, conditions=len(self.conditions))
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
        frame = Frame(body, "rept", repeat=count, conditions=len(self.conditions))
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
