"""An expectation that notices nothing is blind: each constant of it is altered, and a change must fail."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import attrs

from vpmu_emu.checks.language import Expectation, Value, has_observed, is_text, observed


def perturbed(
    expectation: Expectation, left: Value, right: Value
) -> Iterator[tuple[str, list[Expectation]]]:
    """Every constant of the expectation with the changes that it should notice.

    Gives (what was altered, candidates): at least one candidate must fail. An equality must notice
    the smallest change; a bound is moved to just beyond the value that the run gave.
    """
    sides = [side for side in (expectation.left, expectation.right) if _constants(side)]
    if not sides:  # two observed values: their difference is the constant, 0
        moved = ast.BinOp(expectation.right, ast.Add(), ast.Constant(1))
        back = ast.BinOp(expectation.right, ast.Sub(), ast.Constant(1))
        yield "+ 0", [attrs.evolve(expectation, right=moved), attrs.evolve(expectation, right=back)]
        return
    seen = left if isinstance(left, int) else 0
    other = right if isinstance(right, int) else 0
    for side in sides:
        for leaf in _constants(side):
            if (isinstance(leaf, ast.Constant) and isinstance(leaf.value, str)) or (
                isinstance(leaf, ast.Name) and _text_side(expectation)
            ):
                changes: list[ast.expr] = [ast.Constant("\0" + ast.unparse(leaf))]
            else:
                gap = seen - other
                steps = [1, 1024]  # the second for what a division rounds away
                if expectation.op != "==":
                    steps = [1, -1, gap, gap + 1, gap - 1, -gap, -gap + 1, -gap - 1, 1 << 62]
                changes = [ast.BinOp(leaf, ast.Add(), ast.Constant(step)) for step in steps]
            sides_with = [_swap(side, leaf, change) for change in changes]
            if side is expectation.left:
                found = [attrs.evolve(expectation, left=new) for new in sides_with]
            else:
                found = [attrs.evolve(expectation, right=new) for new in sides_with]
            if expectation.op in ("<=", ">="):
                # Values have no sign: nothing lies below 0, but the bound itself can be left out.
                found += [attrs.evolve(new, op=expectation.op[0]) for new in found]
            yield ast.unparse(leaf), found


def _text_side(expectation: Expectation) -> bool:
    return is_text(expectation.left) or is_text(expectation.right)


def _constants(node: ast.expr) -> list[ast.expr]:
    # Leaves that say what is expected: not what the run gives, nor masks and addresses beside it.
    if observed(node):
        return []
    match node:
        case ast.BinOp(left=left, op=op, right=right):
            if isinstance(op, (ast.BitAnd, ast.LShift, ast.RShift, ast.Mod, ast.Div, ast.Mult)) and (
                has_observed(left) or has_observed(right)
            ):
                return []
            return _constants(left) + _constants(right)
        case ast.UnaryOp(operand=operand):
            return _constants(operand)
    return [node]


def _swap(tree: ast.expr, leaf: ast.expr, new: ast.expr) -> ast.expr:
    if tree is leaf:
        return new
    match tree:
        case ast.BinOp(left=left, op=op, right=right):
            return ast.BinOp(_swap(left, leaf, new), op, _swap(right, leaf, new))
        case ast.UnaryOp(op=op, operand=operand):
            return ast.UnaryOp(op, _swap(operand, leaf, new))
    return tree
