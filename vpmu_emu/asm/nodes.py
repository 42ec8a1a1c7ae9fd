"""Expressions and operands as frozen values; they know their place in the text, not their worth."""

from __future__ import annotations

import attrs

_MASK64 = (1 << 64) - 1


def wrap(value: int) -> int:
    """A number as GNU as keeps it: 64 bits, signed."""
    value &= _MASK64
    return value - (1 << 64) if value >> 63 else value


@attrs.frozen
class Number:
    """A constant, wrapped to signed 64 bits."""

    value: int
    at: int = attrs.field(default=0, eq=False)


#: Behind a name: not the symbol but the place that holds its address.
SLOT = "@gotpcrel"


@attrs.frozen
class Name:
    """A symbol, `.` for the place of the statement, or `x@gotpcrel`."""

    name: str
    at: int = attrs.field(default=0, eq=False)


@attrs.frozen
class Local:
    """`1b` or `1f`."""

    number: int
    forward: bool
    at: int = attrs.field(default=0, eq=False)


@attrs.frozen
class Unary:
    """`-x`, `~x`, `!x`."""

    op: str
    node: Node
    at: int = attrs.field(default=0, eq=False)


@attrs.frozen
class Binary:
    """`a op b`."""

    op: str
    left: Node
    right: Node
    at: int = attrs.field(default=0, eq=False)


@attrs.frozen
class Register:
    """A register.

    Attributes:
        name: lower case.
        kind: "r" general, "s" segment, "c" control, "d" debug, "ip".
        number: encoding, 0..15; ah..dh are 4..7.
        width: bits.
        key: the narrowest operand word it matches, for choosing forms.
        needs_rex: spl, bpl, sil, dil and r8..r15 exist only with a REX prefix.
        high: ah, ch, dh, bh exist only without one.
    """

    name: str
    kind: str
    number: int
    width: int
    key: str
    needs_rex: bool = False
    high: bool = False
    at: int = attrs.field(default=0, eq=False)


@attrs.frozen
class Prefixed:
    """`OFFSET x`, `dword ptr x`, `gs:x`; `word` is "offset", a width in bits, or a segment."""

    word: str | int
    node: Node
    at: int = attrs.field(default=0, eq=False)


@attrs.frozen
class Indexed:
    """`a[b]`, which is `[a + b]`."""

    base: Node
    inner: Node
    at: int = attrs.field(default=0, eq=False)


@attrs.frozen
class Bracket:
    """`[a]`."""

    inner: Node
    at: int = attrs.field(default=0, eq=False)


Node = Number | Name | Local | Unary | Binary | Register | Prefixed | Indexed | Bracket
Value = int | Node


@attrs.frozen
class Expression:
    """An operand without brackets or registers: an immediate, a branch target or a bare symbol."""

    value: Value
    offset: bool
    text: str
    key: str = "i"


@attrs.frozen
class Memory:
    """A memory operand.

    Attributes:
        size: bits of `dword ptr`, 0 if not said.
        segment: encoding of an override es cs ss ds fs gs, or -1.
        base, index: registers or None; `base` rip means rip-relative.
        scale: 1 2 4 8, or an expression that must give one.
        disp: constant or expression.
        bare: written as a symbol without brackets.
        key: for choosing forms.
    """

    size: int
    segment: int
    base: Register | None
    index: Register | None
    scale: Value
    disp: Value
    bare: bool
    text: str
    key: str


Operand = Register | Expression | Memory


def _registers() -> dict[str, Register]:
    table: dict[str, Register] = {}

    def add(name: str, kind: str, number: int, width: int, key: str, **more: bool) -> None:
        table[name] = Register(name, kind, number, width, key, **more)

    legacy = ("ax", "cx", "dx", "bx", "sp", "bp", "si", "di")
    accumulators = {"al", "cl", "ax", "dx", "eax", "rax"}
    for number, stem in enumerate(legacy):
        for name, width in ((stem, 16), (f"e{stem}", 32), (f"r{stem}", 64)):
            add(name, "r", number, width, name if name in accumulators else f"r{width}")
        low = f"{stem[0]}l" if number < 4 else f"{stem}l"
        add(low, "r", number, 8, low if low in accumulators else "r8", needs_rex=number >= 4)
        if number < 4:
            add(f"{stem[0]}h", "r", number + 4, 8, "r8", high=True)
    for number in range(8, 16):
        for suffix, width in (("b", 8), ("w", 16), ("d", 32), ("", 64)):
            add(f"r{number}{suffix}", "r", number, width, f"r{width}", needs_rex=True)
    for number, name in enumerate(("es", "cs", "ss", "ds", "fs", "gs")):
        add(name, "s", number, 16, name if name in ("fs", "gs") else "sreg")
    for number in (0, 2, 3, 4, 8):
        add(f"cr{number}", "c", number, 64, "cr")
    for number in range(8):
        add(f"dr{number}", "d", number, 64, "dr")
    add("rip", "ip", 5, 64, "rip")
    add("eip", "ip", 5, 32, "rip")
    return table


def _reserved() -> dict[str, str]:
    sizes = "byte word dword fword qword mmword tbyte oword xmmword ymmword zmmword near far short"
    words = "offset flat not mod and or xor shl shr eq ne lt le gt ge"
    table = dict.fromkeys((*sizes.split(), *words.split()), "a word of Intel syntax")
    for stem, count in (("mm", 8), ("xmm", 32), ("ymm", 32), ("zmm", 32), ("tmm", 8), ("k", 8),
                        ("bnd", 4), ("cr", 16), ("dr", 16), ("db", 16)):  # fmt: skip
        table |= dict.fromkeys((f"{stem}{i}" for i in range(count)), "a register")
    return table | dict.fromkeys(("st", "eip", *REGISTERS), "a register")


#: Every register by its lower-case name.
REGISTERS: dict[str, Register] = _registers()

#: Names that GNU as does not take for a symbol in an expression, in lower case, and what they are.
RESERVED: dict[str, str] = _reserved()
