"""Bit scans and parity of one 64-bit value, branch by branch, because they also run uncompiled."""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.machine.u64 import ONE, U2, U4, U8, U16, U32, U64, ZERO

_M1 = U64(0x5555_5555_5555_5555)
_M2 = U64(0x3333_3333_3333_3333)
_M4 = U64(0x0F0F_0F0F_0F0F_0F0F)
_M7F = U64(0x7F)
_HIGH32 = U64(0xFFFF_FFFF_0000_0000)
_HIGH16 = U64(0xFFFF_0000)
_HIGH8 = U64(0xFF00)
_HIGH4 = U64(0xF0)
_HIGH2 = U64(0xC)
_HIGH1 = U64(0x2)


@jit()
def highest_bit(x):
    """Index of the highest set bit as int64, -1 if there is none."""
    if x == ZERO:
        return -1
    n = 0
    if x & _HIGH32 != ZERO:
        n += 32
        x = x >> U32
    if x & _HIGH16 != ZERO:
        n += 16
        x = x >> U16
    if x & _HIGH8 != ZERO:
        n += 8
        x = x >> U8
    if x & _HIGH4 != ZERO:
        n += 4
        x = x >> U4
    if x & _HIGH2 != ZERO:
        n += 2
        x = x >> U2
    if x & _HIGH1 != ZERO:
        n += 1
    return n


@jit()
def lowest_bit(x):
    """Index of the lowest set bit as int64, -1 if there is none."""
    return highest_bit(x & (~x + ONE))


@jit()
def popcount(x):
    """How many bits are set, as uint64."""
    x = x - ((x >> ONE) & _M1)
    x = (x & _M2) + ((x >> U2) & _M2)
    x = (x + (x >> U4)) & _M4
    x = x + (x >> U8)
    x = x + (x >> U16)
    x = x + (x >> U32)
    return x & _M7F


@jit(inline=True)
def parity(x):
    """PF of the low byte of a result: 1 if the number of its set bits is even."""
    x = x ^ (x >> U4)
    x = x ^ (x >> U2)
    x = x ^ (x >> ONE)
    return (x & ONE) ^ ONE


@jit(inline=True)
def bit(x, n):
    """Bit n (uint64) of x as 0 or 1."""
    return (x >> (n & _BIT_INDEX)) & ONE


_BIT_INDEX = U64(63)
