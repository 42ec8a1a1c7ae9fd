"""A debugger's condition: operations on a stack of 64-bit words; a word that is not 0 holds.

Arithmetic wraps and comparisons are unsigned, as registers are. Dividing by 0 gives 0. Here they ask for
constants and the words of an event, in machine/watching.py for the processor. The debugger writes them.
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.machine import state
from vpmu_emu.machine.u64 import ONE, U64, ZERO

(
    END, CONST, REG, RIP, RFLAGS, CPL, TIME, DONE, COUNTER, MEM, EVENT, RETURNED,
    ADD, SUB, MUL, DIV, MOD, AND, OR, XOR, SHL, SHR, EQ, NE, LT, LE, GT, GE, BOTH, EITHER,
    NEG, INV, NOT,
) = range(33)  # fmt: skip
FIRST_BINARY, FIRST_UNARY = ADD, NEG
_WORD = U64(64)


@jit()
def binary(op, x, y):
    """x op y, one of ADD to EITHER."""
    if op == ADD:
        return x + y
    if op == SUB:
        return x - y
    if op == MUL:
        return x * y
    if op == DIV:
        return x // y if y != ZERO else ZERO
    if op == MOD:
        return x % y if y != ZERO else ZERO
    if op == AND:
        return x & y
    if op == OR:
        return x | y
    if op == XOR:
        return x ^ y
    if op == SHL:
        return x << y if y < _WORD else ZERO
    if op == SHR:
        return x >> y if y < _WORD else ZERO
    found = False
    if op == EQ:
        found = x == y
    elif op == NE:
        found = x != y
    elif op == LT:
        found = x < y
    elif op == LE:
        found = x <= y
    elif op == GT:
        found = x > y
    elif op == GE:
        found = x >= y
    elif op == BOTH:
        found = x != ZERO and y != ZERO
    elif op == EITHER:
        found = x != ZERO or y != ZERO
    return ONE if found else ZERO


@jit()
def unary(op, x):
    """op x, one of NEG to NOT."""
    if op == NEG:
        return ZERO - x
    if op == INV:
        return ~x
    return ONE if x == ZERO else ZERO


@jit()
def event_holds(E, k, a, b, c):
    """Whether condition k, which asks for nothing but an event's words and constants, holds of one."""
    k = k & (state.N_CONDITIONS - 1)
    stack = E.condition_stack
    n = 0
    for i in range(state.CONDITION_WORDS):
        op = E.condition_op[k, i]
        if op == END:
            break
        word = E.condition_word[k, i]
        if op == EVENT:
            stack[n] = a if word == ZERO else b if word == ONE else c
            n += 1
        elif op < FIRST_BINARY:
            stack[n] = word
            n += 1
        elif op < FIRST_UNARY:
            n -= 1
            stack[n - 1] = binary(op, stack[n - 1], stack[n])
        else:
            stack[n - 1] = unary(op, stack[n - 1])
    return stack[0] != ZERO
