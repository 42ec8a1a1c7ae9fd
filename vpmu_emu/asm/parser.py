"""Text of one operand to nodes; what a symbol is worth is not known here."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from lark import Lark
from lark.exceptions import UnexpectedCharacters, UnexpectedToken

from vpmu_emu.asm.errors import Fault
from vpmu_emu.asm.nodes import (
    REGISTERS,
    RESERVED,
    SLOT,
    Binary,
    Bracket,
    Expression,
    Indexed,
    Local,
    Memory,
    Name,
    Node,
    Number,
    Operand,
    Prefixed,
    Register,
    Unary,
    Value,
    wrap,
)
from vpmu_emu.asm.reader import char_value
from vpmu_emu.data import isa_dir

# GNU as, "Infix Operators", with the ranks its operator table really has.
_RANK = {
    "*": 8, "/": 8, "%": 8, "<<": 8, ">>": 8,
    "|": 7, "&": 7, "^": 7,
    "+": 5, "-": 5,
    "==": 4, "!=": 4, "<>": 4, "<": 4, ">": 4, "<=": 4, ">=": 4,
    "&&": 3, "||": 2,
}  # fmt: skip
_SIZES = {"byte": 8, "word": 16, "dword": 32, "fword": 48, "qword": 64, "tbyte": 80, "xmmword": 128}
_ATT = "this assembler reads Intel syntax: registers and numbers are written without % and $"
_DEEP = "split it with .equ"
MAX_OPERAND = 4096


def constant_binary(op: str, a: int, b: int) -> int | None:
    """`a op b` on signed 64-bit numbers as GNU as computes it; None if it has no value."""
    if op == "+":
        return wrap(a + b)
    if op == "-":
        return wrap(a - b)
    if op == "*":
        return wrap(a * b)
    if op in "/%":
        # The least number by -1 ends GNU as itself.
        if b == 0 or (a == -(1 << 63) and b == -1):
            return None
        quotient = abs(a) // abs(b)
        quotient = quotient if (a < 0) == (b < 0) else -quotient
        return wrap(quotient if op == "/" else a - quotient * b)
    if op in ("<<", ">>"):
        if not 0 <= b < 64:
            return None
        return wrap(a << b if op == "<<" else (a & ((1 << 64) - 1)) >> b)
    if op == "&":
        return a & b
    if op == "|":
        return a | b
    if op == "^":
        return a ^ b
    if op == "&&":
        return int(a != 0 and b != 0)
    if op == "||":
        return int(a != 0 or b != 0)
    truth = {
        "==": a == b, "!=": a != b, "<>": a != b,
        "<": a < b, ">": a > b, "<=": a <= b, ">=": a >= b,
    }[op]  # fmt: skip
    return -1 if truth else 0


def constant_unary(op: str, a: int) -> int:
    """`op a` on a signed 64-bit number."""
    if op == "-":
        return wrap(-a)
    return ~a if op == "~" else int(a == 0)


_NUMBER = re.compile("(?P<hex>0x[0-9a-f]+)|(?P<bin>0b[01]+)|(?P<oct>0[0-7]*)|(?P<dec>[1-9][0-9]*)")
_LOCAL = re.compile("[0-9]{1,9}[bf]")


def number_value(text: str) -> int:
    """The value of a number as GNU as reads it: 0x, 0b, octal after a leading 0, else decimal.

    Raises:
        Fault: not a number, or more than 64 bits.
    """
    lower = text.lower()
    hint = ""
    if len(text) > 80:
        value = None
    elif match := _NUMBER.fullmatch(lower):
        value = int(match[0], {"hex": 16, "bin": 2, "oct": 8, "dec": 10}[match.lastgroup or ""])
    else:
        if re.fullmatch("[0-9a-f]+h", lower):
            hint = f"write 0x{lower[:-1]}"
        elif re.fullmatch("0[0-9]+", lower):
            hint = "a leading 0 means octal"
        msg = f"'{text}' is not a number"
        raise Fault(msg, hint, 0, len(text))
    if value is None or value >> 64:
        msg = "the number does not fit in 64 bits"
        raise Fault(msg, "", 0, len(text))
    return wrap(value)


def _binary(op: str, left: Node, right: Node, at: int) -> Node:
    if type(left) is Number and type(right) is Number:
        value = constant_binary(op, left.value, right.value)
        if value is not None:
            return Number(value, left.at)
    return Binary(op, left, right, at)


def _apply(token: Word, left: Node, right: Node) -> Node:
    return _binary(str(token), left, right, token.start_pos)


def _name(text: str, at: int = 0) -> Name:
    """A symbol.

    Raises:
        Fault: the name means something else to GNU as.
    """
    name, slot = text, ""
    if text.lower().endswith(SLOT):
        name, slot = text[: -len(SLOT)], SLOT
    what = RESERVED.get(name.lower())
    if what is not None:
        raise Fault(f"'{name}' is {what}", "it cannot be a symbol here", at, len(name))
    return Name("." if name == "$" else name + slot, at)


def _unary(op: str, node: Node, at: int) -> Node:
    if type(node) is Number:
        return Number(node.value if op == "+" else constant_unary(op, node.value), at)
    if type(node) is Indexed:
        # -8[rbp] is [rbp - 8]
        return Indexed(_unary(op, node.base, at), node.inner, at)
    return Unary(op, node, at) if op != "+" or isinstance(node, Binary) else node


class Word(str):
    """A token of an operand.

    Attributes:
        type: its terminal.
        start_pos: its offset in the text.
    """

    __slots__ = ("start_pos", "type")
    type: str
    start_pos: int


class _Build:
    """Nodes, as the LALR parser reduces: a method for each rule of the grammar."""

    def number(self, token: Word) -> Node:
        at = token.start_pos
        if token[0] != "0" and len(token) < 19 and token.isdecimal() and token.isascii():
            return Number(int(token), at)
        if _LOCAL.fullmatch(token):
            return Local(int(token[:-1]), token[-1] == "f", at)
        try:
            return Number(number_value(token), at)
        except Fault as fault:
            raise fault.moved(at) from None

    def char(self, token: Word) -> Node:
        at = token.start_pos
        try:
            return Number(char_value(token), at)
        except Fault as fault:
            raise fault.moved(at) from None

    def name(self, token: Word) -> Node:
        at = token.start_pos
        register = REGISTERS.get(token.lower())
        if register is not None:
            return Register(
                register.name,
                register.kind,
                register.number,
                register.width,
                register.key,
                register.needs_rex,
                register.high,
                at,
            )
        if token[0] == "$" and len(token) > 1:
            msg = f"'{token}' looks like an AT&T immediate"
            raise Fault(msg, _ATT, at, len(token))
        return _name(str(token), at)

    def quoted(self, token: Word) -> Node:
        # Quotes keep blanks in a name; what it means without them, it means to GNU as with them.
        name, slot = str(token)[1:].split('"')
        return _name(name + slot, token.start_pos)

    def group(self, node: Node) -> Node:
        # `+` keeps a sum in parentheses together: [rax + (b - a)] is not [rax + b - a].
        return Unary("+", node, node.at) if isinstance(node, Binary) else node

    def bracket(self, node: Node) -> Node:
        return Bracket(node, node.at)

    def indexed(self, base: Node, inner: Node) -> Node:
        return Indexed(base, inner, base.at)

    def prefixed(self, token: Word, node: Node) -> Node:
        at = token.start_pos
        if token.type in ("SIGN", "NOT"):
            return _unary(str(token), node, at)
        if token.type == "OFFSET":
            return Prefixed("offset", node, at)
        if token.type == "SIZE":
            return Prefixed(_SIZES[token.split()[0].lower()], node, at)
        return Prefixed(token[:2].lower(), node, at)

    def sum(self, *items: Any) -> Node:
        first: Node = items[0]
        if len(items) == 1:
            return first
        operands: list[Node] = [first]
        operators: list[Word] = []
        for token, node in zip(items[1::2], items[2::2], strict=True):
            while operators and _RANK[operators[-1]] >= _RANK[token]:
                right = operands.pop()
                operands[-1] = _apply(operators.pop(), operands[-1], right)
            operators.append(token)
            operands.append(node)
        while operators:
            right = operands.pop()
            operands[-1] = _apply(operators.pop(), operands[-1], right)
        return operands[0]


@lru_cache(maxsize=1)
def _lark() -> Lark:
    grammar = (isa_dir() / "grammar.lark").read_text(encoding="utf-8")
    return Lark(grammar, parser="lalr", maybe_placeholders=False)


Reduction = tuple[int, Callable[..., Any] | None, str]


def _reduction(rule: Any, build: _Build) -> Reduction:
    """What a rule of the grammar does to its values: how many, what makes one of them, its name."""
    name, parts = str(rule.origin.name), rule.expansion
    keep = [n for n, part in enumerate(parts) if not (part.is_term and part.filter_out)]
    inside = [not parts[n].is_term and parts[n].name.startswith("_") for n in keep]
    if name.startswith("_"):  # a list, which becomes part of the rule above

        def spread(values: list[Any]) -> list[Any]:
            found: list[Any] = []
            for n, many in zip(keep, inside, strict=True):
                if not many:
                    found.append(values[n])
                elif found:
                    found += values[n]
                else:
                    found = values[n]  # a list that grows to the right grows in place
            return found

        return len(parts), spread, name
    if rule.alias is None and rule.options.expand1 and len(keep) == 1:
        return len(parts), None if len(parts) == 1 else lambda values: values[keep[0]], name
    method: Callable[..., Any] = getattr(build, rule.alias or name)
    if any(inside):
        (first, rest) = keep
        return len(parts), lambda values: method(values[first], *values[rest]), name
    if len(keep) == len(parts):
        return len(parts), lambda values: method(*values), name
    return len(parts), lambda values: method(*[values[n] for n in keep]), name


class _Tables:
    """Lark's tables of the grammar, walked here: nodes without the steps that a general parser has.

    Attributes:
        scan: matches one token; the name of its group is its terminal.
        states: by state, what a terminal does: a state to go to, or a reduction.
        goto: by state, the state after a rule.
        start, end: states.
    """

    def __init__(self, lark: Lark, build: _Build) -> None:
        frontend: Any = lark.parser
        table: Any = frontend.parser._parse_table
        terminals = sorted(
            lark.terminals,
            key=lambda t: (-t.priority, -t.pattern.max_width, -len(t.pattern.value), t.name),
        )
        groups = "|".join(f"(?P<{t.name}>{t.pattern.to_regexp()})" for t in terminals)
        self.scan = re.compile(groups).match
        self.ignored = frozenset(lark.ignore_tokens)
        made: dict[Any, Reduction] = {}
        self.states: dict[Any, dict[str, Any]] = {}
        self.goto: dict[Any, dict[str, Any]] = {}
        for state, row in table.states.items():
            self.states[state], self.goto[state] = {}, {}
            for word, (action, to) in row.items():
                name = str(word)  # without Lark's comparison of tokens
                if action.name == "Reduce":
                    self.states[state][name] = made.setdefault(to, _reduction(to, build))
                else:
                    self.states[state][name] = self.goto[state][name] = to
        (self.start,), (self.end,) = table.start_states.values(), table.end_states.values()

    def parse(self, text: str) -> Node | None:
        """The nodes of `text`, or None if the grammar does not take it.

        Raises:
            Fault: with the offset in `text`.
        """
        states, goto, scan, ignored = self.states, self.goto, self.scan, self.ignored
        state = self.start
        stack, values = [state], []
        at, last = 0, len(text)
        token: Any = None
        while True:
            if at == last:
                kind = "$END"
            else:
                match = scan(text, at)
                if match is None:
                    return None
                kind = match.lastgroup or ""
                if kind in ignored:
                    at = match.end()
                    continue
                token = Word(match[0])
                token.type, token.start_pos = kind, at
                at = match.end()
            while True:
                found = states[state].get(kind)
                if found is None:
                    return None
                if type(found) is not tuple:
                    state = found
                    stack.append(state)
                    values.append(token)
                    break
                size, make, name = found
                if make is not None:
                    value = make(values[-size:])
                    del values[-size:]
                    values.append(value)
                del stack[-size:]
                state = goto[stack[-1]][name]
                stack.append(state)
                if state == self.end and kind == "$END":
                    return values[-1]  # type: ignore[no-any-return]


@lru_cache(maxsize=1)
def _tables() -> _Tables:
    return _Tables(_lark(), _Build())


def _syntax_fault(text: str, at: int) -> Fault:
    at = min(at, len(text))
    length = 1
    if "%" in text and re.search(r"%[a-z]", text):
        at = text.index("%")
        return Fault("'%' before a register is AT&T syntax", _ATT, at, 1)
    size = re.search(r"\b(byte|word|dword|qword|tbyte)\s*$", text[:at], re.IGNORECASE)
    if size:
        return Fault(f"'{size[1]}' needs 'ptr'", f"write {size[1]} ptr", size.start(), len(size[1]))
    if re.match(r"short\b", text, re.IGNORECASE):
        return Fault("'short' is not needed", "branches are as short as they can be", 0, 5)
    if at >= len(text):
        missing = [b for a, b in ("()", "[]") if text.count(a) > text.count(b)]
        hint = f"'{missing[0]}' is missing" if missing else ""
        return Fault("the operand ends too early", hint, at, 1)
    found = re.match(r"[\w.$]+|.", text[at:])
    length = len(found[0]) if found else 1
    hint = ""
    if text[at] == '"':
        hint = "a character is written 'a'"
    elif text[at] == "@":
        hint = "@PLT and @GOTPCREL are known: there is no dynamic linker and no thread-local storage here"
    elif re.search(r"[\w\])]\s*$", text[:at]) and text[at].isalnum():
        hint = "an operator or a comma is missing"
    return Fault(f"'{text[at : at + length]}' is not expected here", hint, at, length)


_ONE_NUMBER = re.compile(r"-?[0-9][A-Za-z0-9]*")
_ONE_NAME = re.compile(r"[A-Za-z_.][A-Za-z0-9_.$]*")


def _single(text: str) -> Node | None:
    """A number or a name alone, which need no grammar."""
    if _ONE_NUMBER.fullmatch(text) and text[-1] not in "bf":
        value = number_value(text.lstrip("-"))
        return Number(wrap(-value) if text[0] == "-" else value)
    if _ONE_NAME.fullmatch(text):
        return REGISTERS.get(text.lower()) or _name(text)
    return None


@lru_cache(maxsize=65536)
def parse_expression(text: str) -> Node:
    """One expression or operand to nodes.

    Raises:
        Fault: with the offset in `text`.
    """
    if not text:
        raise Fault("an operand is missing")
    if len(text) > MAX_OPERAND:
        msg = f"an operand of more than {MAX_OPERAND} characters"
        raise Fault(msg, _DEEP)
    single = _single(text)
    if single is not None:
        return single
    try:
        node = _tables().parse(text)
        if node is None:  # Lark says where and why not
            node = _lark().parse(text)  # type: ignore[assignment]
            assert node is not None
    except UnexpectedToken as error:
        ended = error.token.type == "$END"
        raise _syntax_fault(text, len(text) if ended else error.token.start_pos or 0) from None
    except UnexpectedCharacters as error:
        raise _syntax_fault(text, error.pos_in_stream or 0) from None
    except RecursionError:
        msg = "the expression is nested too deeply"
        raise Fault(msg, _DEEP) from None
    return node


_SEGMENTS = {"es": 0, "cs": 1, "ss": 2, "ds": 3, "fs": 4, "gs": 5}
_ADDRESS = "an address is base + index*scale + number, with scale 1, 2, 4 or 8"


_BARE_SIZE = re.compile(r"\b(byte|word|dword|qword|tbyte)\b(?!\s+ptr\b)\s*\[", re.IGNORECASE)


class _Collect:
    """Takes an operand apart into registers, attributes and the sum of the rest."""

    def __init__(self) -> None:
        self.size = 0
        self.segment = -1
        self.offset = False
        self.memory = False
        self.registers: list[tuple[Register, Value | None]] = []
        self.constant = 0
        self.rest: Node | None = None

    def add(self, node: Node, negative: bool = False) -> None:
        kind = type(node)
        if kind is Number:
            value = node.value  # type: ignore[union-attr]
            self.constant = wrap(self.constant - value if negative else self.constant + value)
        elif isinstance(node, Unary) and node.op == "+" and _has_register(node.node):
            self.add(node.node, negative)
        elif isinstance(node, Binary) and node.op in "+-":
            self.add(node.left, negative)
            self.add(node.right, negative != (node.op == "-"))
        elif isinstance(node, Register):
            if negative:
                raise Fault("a register cannot be subtracted", _ADDRESS, node.at, len(node.name))
            self.registers.append((node, None))
        elif isinstance(node, Binary) and node.op == "*" and self._scaled(node, negative):
            pass
        elif isinstance(node, Bracket):
            self._enter(node, negative)
            self.add(node.inner)
        elif isinstance(node, Indexed):
            # a - b[rax] is [rax + a - b]: the index counts for the whole operand.
            self.memory = True
            self.add(node.base, negative)
            self.add(node.inner)
        elif isinstance(node, Prefixed):
            self._prefix(node, negative)
        else:
            _no_registers(node)
            if self.rest is not None:
                self.rest = Binary("-" if negative else "+", self.rest, node, node.at)
            else:
                self.rest = Unary("-", node, node.at) if negative else node

    def _enter(self, node: Node, negative: bool) -> None:
        if negative:
            raise Fault("an address cannot be subtracted", _ADDRESS, node.at)
        self.memory = True

    def _prefix(self, node: Prefixed, negative: bool) -> None:
        word = node.word
        if word == "offset":
            if self.offset or negative:
                raise Fault("one OFFSET is enough", "the difference of two labels needs none", node.at, 6)
            self.offset = True
        elif negative:
            raise Fault("an address cannot be subtracted", _ADDRESS, node.at)
        elif isinstance(word, int):
            if self.size and self.size != word:
                raise Fault("two different operand sizes", "", node.at)
            self.size = word
        else:
            if self.segment >= 0:
                raise Fault("two segment overrides", "", node.at, 2)
            if isinstance(node.node, Register):
                name = node.node.name
                hint = f"write {word}:[{name}]"
                raise Fault("a segment goes before brackets or a number", hint, node.at, 2)
            self.segment = _SEGMENTS[word]
        self.add(node.node, negative)

    def _scaled(self, node: Binary, negative: bool) -> bool:
        left, right = node.left, node.right
        if isinstance(right, Register):
            left, right = right, left
        if isinstance(left, Binary) and left.op == "*":
            inner, factor = left.left, left.right
            if isinstance(factor, Register):
                inner, factor = factor, inner
            if isinstance(inner, Register):
                left, right = inner, _binary("*", factor, right, node.at)
        if not isinstance(left, Register):
            return False
        if negative:
            raise Fault("a register cannot be subtracted", _ADDRESS, left.at, len(left.name))
        _no_registers(right)
        self.registers.append((left, right.value if isinstance(right, Number) else right))
        return True

    @property
    def value(self) -> Value:
        if self.rest is None:
            return self.constant
        if self.constant == 0:
            return self.rest
        return Binary("+", self.rest, Number(self.constant), self.rest.at)


def _has_register(node: Node) -> bool:
    try:
        _no_registers(node)
    except Fault:
        return True
    return False


def _no_registers(node: Node) -> None:
    stack = [node]
    while stack:
        item = stack.pop()
        if isinstance(item, Register):
            raise Fault("a register cannot stand here", _ADDRESS, item.at, len(item.name))
        if isinstance(item, (Bracket, Indexed)):
            raise Fault("an address cannot stand here", _ADDRESS, item.at)
        if isinstance(item, Unary):
            stack.append(item.node)
        elif isinstance(item, Prefixed):
            if item.word != "offset":
                raise Fault("a size or segment cannot stand here", _ADDRESS, item.at)
            stack.append(item.node)
        elif isinstance(item, Binary):
            stack += [item.left, item.right]


def _address(found: _Collect, text: str) -> Memory:
    base: Register | None = None
    index: Register | None = None
    scale: Value = 1
    width = found.registers[0][0].width if found.registers else 64
    for register, factor in found.registers:
        if register.kind not in ("r", "ip") or register.width not in (32, 64) or register.width != width:
            hint = "use its 64-bit name" if register.kind == "r" else _ADDRESS
            msg = f"'{register.name}' cannot address memory here"
            raise Fault(msg, hint, register.at, len(register.name))
        if factor is None and base is None:
            base = register
        elif index is None:
            index, scale = register, 1 if factor is None else factor
        else:
            length = len(register.name)
            raise Fault("too many registers in an address", _ADDRESS, register.at, length)
    stack = ("rsp", "esp")
    plain = all(factor is None for _, factor in found.registers)
    if index is not None and index.name in stack and base is not None and plain:
        base, index = index, base
    if index is not None and index.name in stack:
        raise Fault(f"{index.name} cannot be an index", "", index.at, 3)
    for used in (base, index):
        if used is not None and used.kind == "ip" and index is not None:
            raise Fault("rip goes with a number or a symbol only", "", used.at, 3)
    if isinstance(scale, int) and scale not in (1, 2, 4, 8):
        at, length = (index.at, len(index.name)) if index else (0, 1)
        raise Fault(f"a scale of {scale} does not exist", _ADDRESS, at, length)
    absolute = base is None and index is None
    return Memory(
        found.size,
        found.segment,
        base,
        index,
        scale,
        found.value,
        False,
        text,
        f"{'a' if absolute else 'm'}{found.size}",
    )


@lru_cache(maxsize=65536)
def parse_operand(text: str) -> Operand:
    """One operand of an instruction.

    Raises:
        Fault: with the offset in `text`.
    """
    if "[" in text and (match := _BARE_SIZE.search(text)):
        # GNU as reads `dword [rax]` as 4[rax], which nobody means.
        word = match[1].lower()
        raise Fault(f"'{word}' needs 'ptr'", f"write {word} ptr [...]", match.start(), len(word))
    node = parse_expression(text)
    if isinstance(node, Register):
        if node.kind == "ip":
            raise Fault("rip is not an operand", "write [rip + symbol]", 0, 3)
        return node
    found = _Collect()
    try:
        found.add(node)
    except RecursionError:
        msg = "the expression is nested too deeply"
        raise Fault(msg, _DEEP) from None
    if found.memory or found.segment >= 0:
        if found.offset and not found.registers:
            hint = "write OFFSET x for the address, [x] for what is there"
            raise Fault("OFFSET in brackets is an immediate to GNU as", hint, 0, len(text))
        return _address(found, text)
    if found.registers:
        register = found.registers[0][0]
        msg = "arithmetic on a register needs brackets"
        raise Fault(msg, f"write [{text}] for memory, or use lea", register.at, len(register.name))
    value = found.value
    if found.size:
        if isinstance(value, int):
            hint = f"write ds:{text.split()[-1]} for memory at that address"
            raise Fault("a number with a size is an immediate to GNU as", hint, 0, len(text))
        if found.offset:
            raise Fault("OFFSET has no size", "its place decides", 0, len(text))
        return Memory(found.size, -1, None, None, 1, value, True, text, f"a{found.size}")
    return Expression(value, found.offset, text)
