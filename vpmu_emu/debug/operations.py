"""What a condition is made of: operations on a stack of 64-bit words; a word that is not 0 holds.

Arithmetic wraps and comparisons are unsigned. Dividing by 0 gives 0.
"""

from __future__ import annotations

from collections.abc import Callable

MOST_STEPS = 32
(
    END, CONST, REG, RIP, RFLAGS, CPL, TIME, DONE, COUNTER, MEM, EVENT,
    ADD, SUB, MUL, DIV, MOD, AND, OR, XOR, SHL, SHR, EQ, NE, LT, LE, GT, GE, BOTH, EITHER,
    NEG, INV, NOT,
) = range(32)  # fmt: skip
FIRST_BINARY, FIRST_UNARY = ADD, NEG
_ALL = (1 << 64) - 1
_BINARY: dict[int, Callable[[int, int], int]] = {
    ADD: lambda x, y: x + y,
    SUB: lambda x, y: x - y,
    MUL: lambda x, y: x * y,
    DIV: lambda x, y: x // y if y else 0,
    MOD: lambda x, y: x % y if y else 0,
    AND: lambda x, y: x & y,
    OR: lambda x, y: x | y,
    XOR: lambda x, y: x ^ y,
    SHL: lambda x, y: x << y if y < 64 else 0,
    SHR: lambda x, y: x >> y if y < 64 else 0,
    EQ: lambda x, y: x == y,
    NE: lambda x, y: x != y,
    LT: lambda x, y: x < y,
    LE: lambda x, y: x <= y,
    GT: lambda x, y: x > y,
    GE: lambda x, y: x >= y,
    BOTH: lambda x, y: bool(x and y),
    EITHER: lambda x, y: bool(x or y),
}
_UNARY: dict[int, Callable[[int], int]] = {
    NEG: lambda x: -x,
    INV: lambda x: ~x,
    NOT: lambda x: not x,
}


def binary_value(op: int, x: int, y: int) -> int:
    """x op y, one of ADD to EITHER."""
    return int(_BINARY[op](x, y)) & _ALL


def unary_value(op: int, x: int) -> int:
    """op x, one of NEG to NOT."""
    return int(_UNARY[op](x)) & _ALL
