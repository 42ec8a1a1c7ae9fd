"""A condition as its user writes it becomes operations on a stack of words, or it is said what is wrong.

Arithmetic wraps and comparisons are unsigned, as registers are. What the machine cannot know by itself
(counters of a guest that KVM keeps, MSRs, exits by name) is asked of the session at the stop.
"""

from __future__ import annotations

import ast
import re
from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from vpmu_emu.checks import ProgramLike, read_condition
from vpmu_emu.machine import conditions as m
from vpmu_emu.machine.state import CONDITION_WORDS
from vpmu_emu.tables.msrs import NAMES

VALUE, MSR = 64, 65  # asked of the session: an expression's tree, the number of an MSR
REGISTERS = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
Field = tuple[int, int, int]  # which word of an event, its mask, and what is taken away from it
_ALL = (1 << 64) - 1
_BINARY: dict[type[ast.AST], int] = {
    ast.Add: m.ADD, ast.Sub: m.SUB, ast.Mult: m.MUL, ast.Div: m.DIV, ast.FloorDiv: m.DIV, ast.Mod: m.MOD,
    ast.BitAnd: m.AND, ast.BitOr: m.OR, ast.BitXor: m.XOR, ast.LShift: m.SHL, ast.RShift: m.SHR,
    ast.Eq: m.EQ, ast.NotEq: m.NE, ast.Lt: m.LT, ast.LtE: m.LE, ast.Gt: m.GT, ast.GtE: m.GE,
}  # fmt: skip
_UNARY: dict[type[ast.AST], int] = {ast.USub: m.NEG, ast.Invert: m.INV, ast.Not: m.NOT}
_PLAIN: dict[int, Callable[[int, int], int]] = {  # as machine/conditions.py has them
    m.ADD: lambda x, y: x + y, m.SUB: lambda x, y: x - y, m.MUL: lambda x, y: x * y,
    m.DIV: lambda x, y: x // y if y else 0, m.MOD: lambda x, y: x % y if y else 0,
    m.AND: lambda x, y: x & y, m.OR: lambda x, y: x | y, m.XOR: lambda x, y: x ^ y,
    m.SHL: lambda x, y: x << y if y < 64 else 0, m.SHR: lambda x, y: x >> y if y < 64 else 0,
    m.EQ: lambda x, y: x == y, m.NE: lambda x, y: x != y, m.LT: lambda x, y: x < y,
    m.LE: lambda x, y: x <= y, m.GT: lambda x, y: x > y, m.GE: lambda x, y: x >= y,
    m.BOTH: lambda x, y: bool(x and y), m.EITHER: lambda x, y: bool(x or y),
    m.NEG: lambda x, _: -x, m.INV: lambda x, _: ~x, m.NOT: lambda x, _: not x,
}  # fmt: skip
_MEMORY = {"mem8": 1, "mem16": 2, "mem32": 4, "mem64": 8}


@attrs.frozen
class Test:
    """One condition: (operation, what it is about), in the order in which they are done."""

    text: str
    steps: tuple[tuple[int, Any], ...]

    @property
    def compiled(self) -> bool:
        """Whether the machine can check it by itself, without an event at hand."""
        return self._plain() and all(op != m.EVENT for op, _ in self.steps)

    @property
    def of_event(self) -> bool:
        """Whether it asks for words of an event only."""
        own = (m.CONST, m.EVENT)
        return self._plain() and all(op >= m.FIRST_BINARY or op in own for op, _ in self.steps)

    def _plain(self) -> bool:
        return len(self.steps) < CONDITION_WORDS and all(op < VALUE for op, _ in self.steps)

    def write(self, E: Any, k: int) -> None:
        """Make it condition k of the engine."""
        for i, (op, word) in enumerate(self.steps):
            E.condition_op[k, i], E.condition_word[k, i] = op, word
        E.condition_op[k, len(self.steps)] = m.END

    def value(self, ask: Callable[[int, Any], int]) -> int:
        """What it comes to, all that is no operation being asked for."""
        stack: list[int] = []
        for op, word in self.steps:
            if op == m.CONST:
                stack.append(word)
            elif op == m.MEM:
                stack.append(ask(op, (stack.pop(), word)))
            elif op >= VALUE or op < m.FIRST_BINARY:
                stack.append(ask(op, word) & _ALL)
            elif op < m.FIRST_UNARY:
                y = stack.pop()
                stack.append(int(_PLAIN[op](stack.pop(), y)) & _ALL)
            else:
                stack.append(int(_PLAIN[op](stack.pop(), 0)) & _ALL)
        return stack[0]


@attrs.frozen
class _Names:
    symbols: Mapping[str, int]
    of: ProgramLike

    def insns(self, a: int | str, b: int | str) -> int:
        return self.of.insns(a, b)


def test_of(
    text: str,
    program: ProgramLike,
    fields: Mapping[str, Field],
    constants: Mapping[str, int],
    silicon: bool,
    alone: bool,
) -> Test:
    """Read a condition.

    Args:
        text: with `and or not`, or C's `&& || !`; `$` before a register may stand.
        program: whose symbols it may name.
        fields: names of what only this kind of point has: which word of its event, under which mask, and
            what is taken away from it.
        constants: more names of numbers.
        silicon: whether the counters of the guest are the processor's own.
        alone: whether there is one core.

    Raises:
        CheckError: what cannot be read, or a name of nothing, with a caret.
    """
    plain = re.sub(r"!(?!=)", " not ", text.replace("$", "").replace("&&", " and ").replace("||", " or "))
    more = dict.fromkeys(("cpl", *fields), 0) | dict(constants)
    msrs = {name: NAMES[name] for name in re.findall(r"\w+", plain) if name in NAMES}
    tree = read_condition(plain, _Names(ChainMap(more, dict(program.symbols), msrs), program))
    steps: list[tuple[int, Any]] = []

    def name_of(name: str, place: bool) -> tuple[int, Any]:
        if not place and name == "cpl":
            return m.CPL, 0
        if name in program.symbols:
            return m.CONST, program.symbols[name] & _ALL
        if name in constants:
            return m.CONST, constants[name] & _ALL
        if name in REGISTERS:
            return m.REG, REGISTERS.index(name)
        single = {"rip": m.RIP, "rflags": m.RFLAGS, "cycles": m.TIME, "instructions": m.DONE}
        if name in single and (alone or name != "instructions"):
            return single[name], 0
        counter = re.fullmatch(r"(pmc|fixed)(\d)", name)
        if counter and silicon:
            return m.COUNTER, int(counter[2]) + (8 if counter[1] == "fixed" else 0)
        if name in msrs and not counter:
            return MSR, msrs[name]
        return VALUE, ast.parse(name, mode="eval").body

    def walk(node: ast.expr, place: bool = False) -> None:
        match node:
            case ast.Constant(value=int(value)):
                steps.append((m.CONST, value & _ALL))
            case ast.BoolOp(op=op, values=parts):
                walk(parts[0])
                for part in parts[1:]:
                    walk(part)
                    steps.append((m.BOTH if isinstance(op, ast.And) else m.EITHER, 0))
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                walk(left)
                walk(right)
                steps.append((_BINARY[type(op)], 0))
            case ast.BinOp(left=left, op=op, right=right):
                walk(left, place)
                walk(right, place)
                steps.append((_BINARY[type(op)], 0))
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                walk(operand, place)
            case ast.UnaryOp(op=op, operand=operand):
                walk(operand, place)
                steps.append((_UNARY[type(op)], 0))
            case ast.Call(func=ast.Name(id=name), args=[address]) if name in _MEMORY:
                walk(address, True)
                steps.append((m.MEM, _MEMORY[name]))
            case ast.Name(id=name) if name in fields and not place:
                word, mask, less = fields[name]
                steps.extend([(m.EVENT, word), (m.CONST, mask), (m.AND, 0), (m.CONST, less), (m.SUB, 0)])
            case ast.Name(id=name):
                steps.append(name_of(name, place))
            case _:
                steps.append((VALUE, node))

    walk(tree)
    return Test(text, tuple(steps))


