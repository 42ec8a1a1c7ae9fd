"""Source text to statements: comments, strings, `;`, and what macros make of their arguments."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence

import attrs

from vpmu_emu.asm.errors import Fault, did_you_mean

MAX_EXPANDED = 65536
MAX_LINE = 1 << 20


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
    """One call of a macro; `call` is the calling statement, `empty` the parameters without a value."""

    macro: str
    call: Statement
    depth: int
    empty: tuple[str, ...] = ()

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


def _and_beyond(ascii_class: str) -> str:
    """A class of characters and of all beyond ASCII.

    By what is not in it: a class with a range to the last character takes `re` 20 ms.
    """
    others = (chr(code) for code in range(0x80) if not re.fullmatch(ascii_class, chr(code)))
    return f"[^{re.escape(''.join(others))}]"


_PLAIN = re.compile(r"[^\"'/;#]*")
# Letters of a word for the scrubber of GNU as (app.c), with the extra ones of i386: blanks between
# two of them stay, others vanish.
_SYMBOL = re.compile(_and_beyond(r"[A-Za-z0-9_.$*%\-(\[{}]"))
_RUN = re.compile(r"[A-Za-z0-9_.$]+")
_JOINS = re.compile(r"[\w.$*%\-(\[{}\"'\\]")
# Possessive: a string of megabytes is read without remembering every character.
STRING = r'"(?:[^"\\]++|\\.)*+"'
_STRING = re.compile(STRING, re.DOTALL)
_LITERAL = re.compile(rf"{STRING}|'(?:\\.|[^\\])'?", re.DOTALL)
_BLANK = re.compile(r"\s*")


def split_line(line: str, in_comment: bool = False) -> tuple[list[tuple[int, str]], bool]:
    """Statements of one line as (column from 1, text), and whether a /* comment stays open.

    Raises:
        Fault: a string without its end, or a comment inside of a statement; `at` is the offset.
    """
    pieces: list[tuple[int, str]] = []
    parts: list[str] = []
    last = ""  # what was read before a comment, without blanks
    start, position, end = 0, 0, len(line)

    def flush() -> None:
        nonlocal last
        text = "".join(parts)
        stripped = text.strip()
        if stripped:
            pieces.append((start + 1 + len(text) - len(text.lstrip()), stripped))
        parts.clear()
        last = ""

    while position < end:
        if in_comment:
            close = line.find("*/", position)
            if close < 0:
                break
            # Blanks keep the columns of what follows.
            parts.append(" " * (close + 2 - position))
            position, in_comment = close + 2, False
            blank = _BLANK.match(line, position)
            assert blank
            after = line[blank.end() : blank.end() + 1]
            if _JOINS.match(last) and _JOINS.match(after):
                # GNU as joins the words on both sides of a comment, or not: it depends.
                msg = "a comment between two words"
                raise Fault(msg, "put it before or behind the statement", position)
            continue
        plain = _PLAIN.match(line, position)
        if plain and plain.end() > position:
            parts.append(plain[0])
            last = plain[0].rstrip()[-1:] or last
            position = plain.end()
            continue
        char = line[position]
        if char == ";":
            flush()
            position += 1
            start = position
        elif char == "#" or line.startswith("//", position):
            break
        elif line.startswith("/*", position):
            in_comment = True
            parts.append("  ")
            position += 2
        else:
            literal = _LITERAL.match(line, position) if char != "/" else None
            if char == '"' and literal is None:
                raise Fault("the string is never closed", 'write "', position, end - position)
            last = piece = literal[0] if literal else char
            last = last[-1]
            parts.append(piece)
            position += len(piece)
    flush()
    return pieces, in_comment


@attrs.frozen
class Source:
    """A source that was read.

    Attributes:
        statements: of all lines.
        lines: as written.
        expectations: its `#:` lines as (line, text after the mark).
        faults: with the line as a statement.
    """

    statements: list[Statement]
    lines: list[str]
    expectations: list[tuple[int, str]]
    faults: list[tuple[Statement, Fault]]


def read(text: str, name: str) -> Source:
    """A whole source."""
    lines = text.split("\n")
    faults: list[tuple[Statement, Fault]] = []
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
        try:
            if len(line) > MAX_LINE:
                raise Fault(f"a line of more than {MAX_LINE} characters", "break it into several")
            pieces, in_comment = split_line(line, in_comment)
        except Fault as fault:
            where = Statement(line, name, number, 1, line[:MAX_EXPANDED])
            faults.append((where, fault))
            in_comment = False
            continue
        if in_comment and not before:
            opened = number
        for column, piece in pieces:
            statements.append(Statement(piece, name, number, column, line))
    if in_comment:
        where = Statement("", name, opened, 1, lines[opened - 1])
        faults.append((where, Fault("the comment is never closed", "write */")))
    return Source(statements, lines, expectations, faults)


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


_ESCAPES = {"b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11}
_ESCAPE = re.compile(r"\\([0-9]{1,3}|[xX][0-9a-fA-F]*|.)", re.DOTALL)


def string_bytes(text: str) -> bytes:
    """The bytes of a quoted string, escapes as in GNU as.

    Raises:
        Fault: no string, or not closed.
    """
    if not text.startswith('"'):
        raise Fault("a string in double quotes is expected", "", 0, max(1, len(text)))
    literal = _STRING.match(text)
    if literal is None:
        raise Fault("the string is never closed", 'write "', 0, len(text))
    if literal.end() < len(text):
        raise Fault("something follows the string", "", literal.end(), len(text) - literal.end())
    out = bytearray()
    position, body = 0, text[1:-1]
    for match in _ESCAPE.finditer(body):
        out += body[position : match.start()].encode("utf-8", "surrogateescape")
        escape = match[1]
        if escape[0] in "0123456789":
            # 8 and 9 are digits, too: GNU as multiplies by eight and adds.
            out.append(sum(int(d) << 3 * i for i, d in enumerate(reversed(escape))) & 255)
        elif escape[0] in "xX":
            out.append(int(escape[1:][-2:] or "0", 16))
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


NAME = _and_beyond(r"[A-Za-z_.$]") + _and_beyond(r"[\w.$]") + "*"
#: A symbol, perhaps in quotes, as compilers write all of them in Intel syntax lately.
SYMBOL = r'(?:[A-Za-z_.$][A-Za-z0-9_.$]*|"[A-Za-z_.$][A-Za-z0-9_.$ ]*")'
_TOKEN = re.compile(NAME)
_BLANKS = re.compile(r"[ \t]*")
_COMMA = re.compile(r"[ \t]*(,?)[ \t]*")
_QUALIFIER = re.compile(rf"[ \t]*:[ \t]*({NAME})?")
_CHARACTER = re.compile(r"'(\\?)(.?)'?", re.DOTALL)
_CHARS = {"b": 8, "f": 12, "n": 10, "r": 13, "t": 9}


def char_value(text: str) -> int:
    """The value of a character literal with its opening quote.

    Raises:
        Fault: no byte.
    """
    match = _CHARACTER.match(text)
    assert match
    char = match[2]
    if not char:
        raise Fault("a character is missing behind the quote", "", 0, len(text))
    value = _CHARS.get(char, ord(char)) if match[1] else ord(char)
    if value > 127:
        raise Fault("a character literal is one byte", "spell it in UTF-8 with .ascii", 0, len(text))
    return value


def scrub(text: str, state: int = 0) -> str:
    """A statement as do_scrub_chars() of GNU as hands it on: few blanks, characters as numbers.

    Macros see this text, not what is written. States as there: 0 and 1 before the first word, 2 and
    11 in it, 3 in the operands, 9 behind a letter of a word, 10 behind a blank behind one.
    """
    out: list[str] = []
    position, end = 0, len(text)
    while position < end:
        char = text[position]
        if char in " \t":
            blanks = _BLANKS.match(text, position)
            assert blanks
            position = blanks.end()
            if position >= end:
                break
            if state in (2, 11) and text[position] != ":":
                out.append(" ")
                state = 3
            elif state == 9:
                state = 10
            continue
        if state == 10 and (char in "\"'\\" or _SYMBOL.match(char)):
            out.append(" ")
            state = 3
        if char == '"':
            literal = _LITERAL.match(text, position)
            assert literal
            out.append(literal[0])
            position = literal.end()
            state = {0: 11, 3: 9}.get(state, state)
            continue
        if char == "'":
            literal = _CHARACTER.match(text, position)
            assert literal
            number = str(char_value(literal[0]))
            out.append(number)
            position = literal.end()
            if len(number) > 1 and state == 9:
                state = 3
            continue
        run = _RUN.match(text, position)
        out.append(run[0] if run else char)
        position = run.end() if run else position + 1
        if char == ":":
            state = 3 if state in (3, 9, 10) else 1
        elif _SYMBOL.match(char):
            state = {0: 11, 1: 2, 3: 9, 10: 3}.get(state, state)
        else:
            state = {0: 11, 1: 2, 9: 3, 10: 3}.get(state, state)
    return "".join(out)


def starts_word(text: str) -> bool:
    """Whether a blank before this text stays."""
    return text[0] in "\"'\\" or bool(_SYMBOL.match(text))


def _comma(text: str, position: int) -> int:
    """Behind blanks and at most one comma."""
    match = _COMMA.match(text, position)
    assert match
    return match.end()


def parse_parameters(text: str) -> tuple[Parameter, ...]:
    """Parameters of a `.macro` line, after its name; as do_formals() of GNU as.

    Raises:
        Fault: with the offset in `text`.
    """
    found: dict[str, Parameter] = {}
    position = _comma(text, 0)
    while position < len(text):
        name = _TOKEN.match(text, position)
        if not name:
            raise Fault("a parameter name is expected", "", position)
        position, kind = name.end(), ""
        if qualifier := _QUALIFIER.match(text, position):
            kind = qualifier[1] or ""
            if kind not in ("req", "vararg"):
                msg = f"a parameter cannot be ':{kind}'"
                length = qualifier.end() - name.start()
                raise Fault(msg, "write :req or :vararg", name.start(), length)
            position = qualifier.end()
        default = ""
        blanks = _BLANKS.match(text, position)
        assert blanks
        if text.startswith("=", blanks.end()):
            default, position = _argument(text, blanks.end() + 1)
            default = "" if kind == "req" else default
        if name[0] in found:
            msg = f"parameter '{name[0]}' is there twice"
            raise Fault(msg, "", name.start(), len(name[0]))
        found[name[0]] = Parameter(name[0], default, kind)
        behind = _comma(text, position)
        if text[position:behind].strip() and behind >= len(text):
            raise Fault("a parameter name is expected", "", behind)
        if kind == "vararg" and behind < len(text):
            raise Fault("nothing can follow a :vararg parameter", "", behind, len(text) - behind)
        position = behind
    return tuple(found.values())


def _argument(text: str, position: int) -> tuple[str, int]:
    """One argument from `position` of scrubbed text; as get_any_string() of GNU as."""
    blanks = _BLANKS.match(text, position)
    assert blanks
    position = blanks.end()
    if text.startswith('"', position):
        return _quoted(text, position)
    begin = position
    inside: list[str] = []
    while position < len(text):
        char = text[position]
        if char == "," or (char in " \t" and not inside):
            break
        if char in "\"'":
            close = text.find(char, position + 1)
            if close < 0:
                return text[begin:], len(text)
            position = close
        elif char in "([":
            inside.append(char)
        elif inside and char + inside[-1] in (")(", "]["):
            inside.pop()
        position += 1
    return text[begin:position], position


def _quoted(text: str, position: int) -> tuple[str, int]:
    # getstring(): backslashes stay for whoever reads the text next, two quotes are one.
    out: list[str] = []
    position += 1
    while position < len(text):
        char = text[position]
        if char == "\\" and position + 1 < len(text):
            out.append(text[position : position + 2])
            position += 2
            continue
        if char == '"':
            position += 1
            if not text.startswith('"', position):
                break
        out.append(char)
        position += 1
    return "".join(out), position


_KEYWORD = re.compile(r'[^ \t,";()=]*=')


def parse_arguments(macro: Macro, text: str) -> dict[str, str]:
    """The arguments of a call by parameter name; as macro_expand() of GNU as.

    Raises:
        Fault: too many, unknown, missing, or positional after named.
    """
    text = scrub(text, 3)
    values: dict[str, str] = {}
    names = [p.name for p in macro.parameters]
    position, count, keyword = 0, 0, False
    while position < len(text):
        if named := _KEYWORD.match(text, position):
            # `a==b` names a, too, whose value then begins with `=`.
            name = named[0][:-1]
            if name not in names:
                msg = f"macro '{macro.name}' has no parameter '{name}'"
                hint = did_you_mean(name, names) or "quote an argument that has = in it"
                raise Fault(msg, hint)
            values[name], position = _argument(text, named.end())
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
            values[parameter.name] = value
            count += 1
        position = _comma(text, position)
    for parameter in macro.parameters:
        if not values.get(parameter.name):
            if parameter.kind == "req":
                listed = " ".join(f"{p.name}:{p.kind}" if p.kind else p.name for p in macro.parameters)
                raise Fault(
                    f"macro '{macro.name}' needs a value for '{parameter.name}'",
                    f"it is defined as .macro {macro.name} {listed}",
                )
            values[parameter.name] = parameter.default
    return values


def listed_values(text: str) -> list[str]:
    """The values of `.irp`, behind its parameter; as expand_irp() of GNU as."""
    text = scrub(text, 3)
    values: list[str] = []
    position = 0
    while position < len(text):
        value, position = _argument(text, position)
        values.append(value)
        position = _comma(text, position)
    return values or [""]


def listed_characters(text: str) -> list[str]:
    """The characters of `.irpc`, behind its parameter."""
    text = scrub(text, 3)
    if not text:
        return [""]
    if not text.isascii():
        raise Fault("a character is one byte to GNU as", "write .irp with commas", 0, len(text))
    quoted = text.startswith('"')
    values: list[str] = []
    position = int(quoted)
    while position < len(text):
        if text[position] == '"':
            quoted = not quoted
            if not text[position + 1 :].strip(" \t"):
                break
        values.append(text[position])
        position += 1
        while not quoted and text[position : position + 1] in (" ", "\t"):
            position += 1
    return values


_REFERENCE = re.compile(rf"\\(?:\(([^)]*)(\)?)|@|&|({NAME})'?)?|&({NAME})&?")


def substitute(
    body: Sequence[Statement],
    values: dict[str, str],
    count: int,
    origin: Expansion | None,
    keep: Container[str] = (),
) -> list[Statement]:
    r"""A macro body with its arguments in place; as macro_expand_body() of GNU as.

    Args:
        body: the statements as written.
        values: by parameter name.
        count: what `\@` stands for.
        origin: the call, or None to keep that of the body.
        keep: first words of statements that keep their blanks, because blanks mean nothing there.

    Raises:
        Fault: a statement grows beyond all measure.
    """

    def replace(match: re.Match[str]) -> str:
        literal, closed, name, joined = match.groups()
        whole = match[0]
        if literal is not None:
            if not closed:
                raise Fault("')' is missing behind \\(")
            return literal
        if name is not None:
            return values.get(name, "\\" + name)  # a quote behind it ends the name
        if joined is not None:
            return values.get(joined, whole)
        return str(count) if whole == "\\@" else whole

    out: list[Statement] = []
    for statement in body:
        text = statement.text
        source = origin or statement.origin
        if "\\" not in text and "&" not in text:
            out.append(
                Statement(text, statement.file, statement.line, statement.column, statement.source, source)
            )
            continue
        if "'" in text or text.split(None, 1)[0].lower() not in keep:
            text = scrub(text)
        text = _REFERENCE.sub(replace, text)
        if len(text) > MAX_EXPANDED:
            msg = f"a statement of more than {MAX_EXPANDED} characters"
            raise Fault(msg, "a macro argument grows with every call")
        for line in text.split("\n"):
            pieces, commented = split_line(line)
            if commented:
                raise Fault("an argument opens a comment", "quote /* in a string")
            for column, piece in pieces:
                out.append(Statement(piece, statement.file, statement.line, column, text, source))
    return out
