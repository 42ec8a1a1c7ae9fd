"""Source text to statements: comments, strings, `;`, and what macros make of their arguments."""

from __future__ import annotations

import re
from collections.abc import Sequence

import attrs

from vpmu_emu.asm.errors import Fault

MAX_STATEMENT = 65536


@attrs.define(eq=False, slots=True)
class Statement:
    """One statement.

    Attributes:
        text: without comments and outer blanks.
        file, line, column: where it stands; in a macro, where its body does.
        source: the whole line, as written or as expanded.
        origin: the expansion it comes from, or None.
    """

    text: str
    file: str
    line: int
    column: int
    source: str
    origin: Expansion | None = None


@attrs.define(eq=False)
class Expansion:
    """One call of a macro; `call` is the calling statement."""

    macro: str
    call: Statement
    depth: int

    def chain(self) -> tuple[str, ...]:
        """Calls around, innermost first."""
        lines: list[str] = []
        expansion: Expansion | None = self
        while expansion is not None:
            call = expansion.call
            lines.append(f"in macro '{expansion.macro}', called at {call.file}:{call.line}")
            expansion = call.origin
        if len(lines) > 8:
            lines = [*lines[:5], f"... {len(lines) - 7} more calls ...", *lines[-2:]]
        return tuple(lines)


_PLAIN = re.compile(r"[^\"'/;#]*")
_LITERAL = re.compile(r"\"(?:\\.|[^\"\\])*(?:\"|$)|'(?:\\.|[^\\])'?", re.DOTALL)


def split_line(line: str, in_comment: bool = False) -> tuple[list[tuple[int, str]], bool]:
    """Statements of one line as (column from 1, text), and whether a /* comment stays open."""
    pieces: list[tuple[int, str]] = []
    text, start, position, end = "", 0, 0, len(line)

    def flush(upto: int) -> None:
        nonlocal text
        stripped = text.strip()
        if stripped:
            pieces.append((start + 1 + len(text) - len(text.lstrip()), stripped))
        text = ""

    while position < end:
        if in_comment:
            close = line.find("*/", position)
            if close < 0:
                break
            # A comment is a blank; blanks keep the columns of what follows.
            text += " " * (close + 2 - position)
            position, in_comment = close + 2, False
            continue
        plain = _PLAIN.match(line, position)
        if plain and plain.end() > position:
            text += plain[0]
            position = plain.end()
            continue
        char = line[position]
        if char == ";":
            flush(position)
            position += 1
            start = position
        elif char == "#" or line.startswith("//", position):
            break
        elif line.startswith("/*", position):
            in_comment = True
            text += "  "
            position += 2
        else:
            literal = _LITERAL.match(line, position) if char != "/" else None
            piece = literal[0] if literal else char
            text += piece
            position += len(piece)
    flush(end)
    return pieces, in_comment


def read(text: str, name: str) -> tuple[list[Statement], list[str], list[tuple[int, str]]]:
    """A whole source.

    Returns:
        its statements, its lines, and its `#:` lines as (line, text after the mark).

    Raises:
        Fault: an unterminated comment; `at` is the line.
    """
    lines = text.split("\n")
    statements: list[Statement] = []
    expectations: list[tuple[int, str]] = []
    in_comment, opened = False, 0
    for number, raw in enumerate(lines, 1):
        line = raw.rstrip("\r")
        if not in_comment:
            stripped = line.strip()
            if not stripped:
                continue
            if stripped[0] == "#":
                if stripped.startswith("#:"):
                    expectations.append((number, stripped[2:].strip()))
                continue
            if "/" not in line and ";" not in line and '"' not in line and "'" not in line:
                cut = line.find("#")
                stripped = line[:cut].strip() if cut >= 0 else stripped
                if stripped:
                    column = len(line) - len(line.lstrip()) + 1
                    statements.append(Statement(stripped, name, number, column, line))
                continue
        before = in_comment
        pieces, in_comment = split_line(line, in_comment)
        if in_comment and not before:
            opened = number
        for column, piece in pieces:
            statements.append(Statement(piece, name, number, column, line))
    if in_comment:
        msg = "the comment is never closed"
        raise Fault(msg, "write */", opened)
    return statements, lines, expectations


def split_operands(text: str) -> list[tuple[int, str]]:
    """Comma-separated parts as (offset, text); commas in quotes and brackets do not count."""
    if "," not in text:
        return [(0, text)]
    if '"' not in text and "'" not in text and "(" not in text and "[" not in text:
        parts: list[tuple[int, str]] = []
        offset = 0
        for part in text.split(","):
            stripped = part.strip()
            parts.append((offset + len(part) - len(part.lstrip()), stripped))
            offset += len(part) + 1
        return parts
    parts, depth, begin, position = [], 0, 0, 0

    def add(upto: int) -> None:
        part = text[begin:upto]
        parts.append((begin + len(part) - len(part.lstrip()), part.strip()))

    while position < len(text):
        char = text[position]
        if char in "\"'":
            literal = _LITERAL.match(text, position)
            position = literal.end() if literal else position + 1
            continue
        if char in "([":
            depth += 1
        elif char in ")]":
            depth -= 1
        elif char == "," and depth <= 0:
            add(position)
            begin = position + 1
        position += 1
    add(len(text))
    return parts


_ESCAPES = {"b": 8, "f": 12, "n": 10, "r": 13, "t": 9}
_ESCAPE = re.compile(r"\\([0-7]{1,3}|[xX][0-9a-fA-F]+|.)", re.DOTALL)


def string_bytes(text: str) -> bytes:
    """The bytes of a quoted string, escapes as in GNU as.

    Raises:
        Fault: no string, or not closed.
    """
    if not text.startswith('"'):
        raise Fault("a string in double quotes is expected", "", 0, max(1, len(text)))
    if len(text) < 2 or not re.fullmatch(r'"(?:\\.|[^"\\])*"', text, re.DOTALL):
        end = _LITERAL.match(text)
        if end is None or not end[0].endswith('"') or len(end[0]) < 2:
            raise Fault("the string is never closed", 'write "', 0, len(text))
        raise Fault("something follows the string", "", end.end(), len(text) - end.end())
    out = bytearray()
    position, body = 0, text[1:-1]
    for match in _ESCAPE.finditer(body):
        out += body[position : match.start()].encode("utf-8", "surrogateescape")
        escape = match[1]
        if escape[0] in "01234567":
            out.append(int(escape, 8) & 255)
        elif escape[0] in "xX" and len(escape) > 1:
            out.append(int(escape[-2:] if len(escape) > 2 else escape[1:], 16) & 255)
        elif escape in _ESCAPES:
            out.append(_ESCAPES[escape])
        else:
            out += escape.encode("utf-8", "surrogateescape")
        position = match.end()
    out += body[position:].encode("utf-8", "surrogateescape")
    return bytes(out)


@attrs.frozen
class Parameter:
    """A macro parameter; `kind` is "", "req" or "vararg"."""

    name: str
    default: str
    kind: str


@attrs.define(eq=False)
class Macro:
    """A macro as defined."""

    name: str
    parameters: tuple[Parameter, ...]
    body: list[Statement]


_PARAMETER = re.compile(r"\s*([A-Za-z_.$][\w.$]*)\s*(?::\s*(\w+))?\s*(=\s*)?")
# Blanks between two of these characters separate arguments; others vanish (the scrubber of
# GNU as, with the extra symbol characters of i386).
_WORDY = re.compile(r"[\w.$*%\-(\[{}\"']")


def parse_parameters(text: str) -> tuple[Parameter, ...]:
    """Parameters of a `.macro` line, after its name.

    Raises:
        Fault: with the offset in `text`.
    """
    found: list[Parameter] = []
    position = 0
    while position < len(text):
        if text[position] in " \t,":
            position += 1
            continue
        match = _PARAMETER.match(text, position)
        if not match:
            msg = "a parameter name is expected"
            raise Fault(msg, "", position)
        name, kind = match[1], (match[2] or "").lower()
        if kind not in ("", "req", "vararg"):
            msg = f"a parameter cannot be ':{kind}'"
            raise Fault(msg, "write :req or :vararg", position, len(match[0]))
        position = match.end()
        default = ""
        if match[3]:
            default, position = _argument(text, position)
        if any(p.name == name for p in found):
            msg = f"parameter '{name}' is there twice"
            raise Fault(msg, "", match.start(1), len(name))
        found.append(Parameter(name, default, kind))
    return tuple(found)


def _argument(text: str, position: int) -> tuple[str, int]:
    """One argument from `position`; as get_any_string() of GNU as."""
    while position < len(text) and text[position] in " \t":
        position += 1
    if position < len(text) and text[position] == '"':
        literal = _LITERAL.match(text, position)
        assert literal
        body = literal[0]
        body = body[1:-1] if body.endswith('"') and len(body) > 1 else body[1:]
        return body.replace('\\"', '"'), literal.end()
    begin, depth = position, 0
    while position < len(text):
        char = text[position]
        if char in "\"'":
            literal = _LITERAL.match(text, position)
            position = literal.end() if literal else position + 1
            continue
        if char == "," or (char in " \t" and depth <= 0):
            break
        depth += (char in "([") - (char in ")]")
        position += 1
    return text[begin:position], position


def _scrubbed(text: str) -> str:
    """Blanks that do not separate words removed."""
    out: list[str] = []
    position = 0
    while position < len(text):
        char = text[position]
        if char in "\"'":
            literal = _LITERAL.match(text, position)
            piece = literal[0] if literal else char
            out.append(piece)
            position += len(piece)
        elif char in " \t":
            while position < len(text) and text[position] in " \t":
                position += 1
            before = out[-1][-1] if out else ""
            after = text[position : position + 1]
            if before and after and _WORDY.match(before) and _WORDY.match(after):
                out.append(" ")
            elif before in (")", "]") and after and _WORDY.match(after):
                out.append(" ")
        else:
            out.append(char)
            position += 1
    return "".join(out)


def parse_arguments(macro: Macro, text: str) -> dict[str, str]:
    """The arguments of a call by parameter name.

    Raises:
        Fault: too many, unknown, missing, or positional after named.
    """
    text = _scrubbed(text)
    values: dict[str, str] = {}
    names = [p.name for p in macro.parameters]
    position, count, keyword = 0, 0, False
    while position < len(text):
        while position < len(text) and text[position] in " \t":
            position += 1
        named = re.compile(r"([A-Za-z_.$][\w.$]*)=(?!=)").match(text, position)
        if named and named[1] in names:
            value, position = _argument(text, named.end())
            values[named[1]] = value
            keyword = True
        else:
            if keyword:
                raise Fault("a positional argument after a named one", "name this one too")
            if count >= len(names):
                raise Fault(
                    f"too many arguments for macro '{macro.name}', it takes {len(names)}",
                    'quote an argument that has blanks or commas: "dword ptr [rax]"',
                )
            parameter = macro.parameters[count]
            if parameter.kind == "vararg":
                value, position = text[position:], len(text)
            else:
                value, position = _argument(text, position)
            if value:
                values[parameter.name] = value
            count += 1
        while position < len(text) and text[position] in " \t":
            position += 1
        if position < len(text) and text[position] == ",":
            position += 1
    for parameter in macro.parameters:
        if parameter.name not in values:
            if parameter.kind == "req":
                raise Fault(f"macro '{macro.name}' needs a value for '{parameter.name}'")
            values[parameter.name] = parameter.default
    return values


_REFERENCE = re.compile(r"\\(?:\(\)|@|([A-Za-z_.$][\w.$]*))")


def substitute(
    body: Sequence[Statement], values: dict[str, str], count: int, origin: Expansion | None
) -> list[Statement]:
    """A macro body with its arguments in place.

    Raises:
        Fault: a statement grows beyond all measure.
    """

    def replace(match: re.Match[str]) -> str:
        name = match[1]
        if name is None:
            return "" if match[0] == "\\()" else str(count)
        while name:
            if name in values:
                # `\a.b` with a parameter a: the longest name that is one.
                return values[name] + match[1][len(name) :]
            name = name[:-1] if "." in name or "$" in name else ""
        return match[0]

    out: list[Statement] = []
    for statement in body:
        if "\\" not in statement.text:
            out.append(
                Statement(
                    statement.text,
                    statement.file,
                    statement.line,
                    statement.column,
                    statement.source,
                    origin or statement.origin,
                )
            )
            continue
        text = _REFERENCE.sub(replace, statement.text)
        if len(text) > MAX_STATEMENT:
            msg = f"a statement of more than {MAX_STATEMENT} characters"
            raise Fault(msg, "a macro argument grows with every call")
        pieces: list[tuple[int, str]] = []
        for line in text.split("\n"):
            pieces += split_line(line)[0]
        for column, piece in pieces:
            out.append(
                Statement(
                    piece, statement.file, statement.line, column, text, origin or statement.origin
                )
            )
    return out
