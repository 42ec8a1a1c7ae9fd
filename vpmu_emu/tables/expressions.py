"""Formulas of the tables: whole numbers, modulo 2**64, over the names of a CPU's shape."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from functools import cache

from vpmu_emu.errors import ConfigError

MASK64 = (1 << 64) - 1

_BINARY: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
}
_UNARY: dict[type[ast.unaryop], Callable[[int], int]] = {
    ast.Invert: operator.invert,
    ast.USub: operator.neg,
    ast.Not: lambda value: int(not value),
}
_COMPARE: dict[type[ast.cmpop], Callable[[int, int], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def evaluate(text: str, names: Mapping[str, int]) -> int:
    """The value of formula `text`, 0 to 2**64 - 1.

    Python's syntax with + - * ~ & | ^ << >>, comparisons, and/or/not, if-else, whole numbers,
    `true`, `false` and `names`, which may have a dot: guest.gp.

    Raises:
        ConfigError: the text is no formula, or names something unknown.
    """
    return _value(_parsed(text), text, names) & MASK64


def check_formula(text: str, names: Mapping[str, int]) -> None:
    """Look at all of a formula, at what `and`, `or` and `if` leave out too.

    Raises:
        ConfigError: as `evaluate`.
    """
    tree = _parsed(text)
    dotted = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.expr) and id(node) not in dotted:
            _value(node, text, names)


@cache
def _parsed(text: str) -> ast.expr:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise ConfigError(text, f"not a formula: {error}") from None


def _value(node: ast.expr, text: str, names: Mapping[str, int]) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.Name) and node.id in ("true", "false"):
        return int(node.id == "true")
    if isinstance(node, ast.Name) or (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)):
        name = ast.unparse(node)
        if name in names:
            return names[name]
        raise ConfigError(text, f"unknown name {name!r}", " ".join(sorted(names)))
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = _value(node.left, text, names), _value(node.right, text, names)
        # A shift by a huge count would only eat memory.
        if isinstance(node.op, (ast.LShift, ast.RShift)) and not 0 <= right < 64:
            raise ConfigError(text, f"shift by {right}", "0 to 63")
        return _BINARY[type(node.op)](left, right)
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _UNARY[type(node.op)](_value(node.operand, text, names))
    if isinstance(node, ast.BoolOp):
        # The value that decides, as in Python, so that `gp and fixed` stays a number.
        result = 0
        for operand in node.values:
            result = _value(operand, text, names)
            if bool(result) == isinstance(node.op, ast.Or):
                break
        return result
    if isinstance(node, ast.IfExp):
        chosen = node.body if _value(node.test, text, names) else node.orelse
        return _value(chosen, text, names)
    if isinstance(node, ast.Compare) and all(type(op) in _COMPARE for op in node.ops):
        values = [_value(item, text, names) for item in (node.left, *node.comparators)]
        pairs = zip(node.ops, values, values[1:], strict=False)
        return int(all(_COMPARE[type(op)](a, b) for op, a, b in pairs))
    raise ConfigError(text, f"{ast.unparse(node)!r} is not allowed in a formula")
