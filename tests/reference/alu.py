"""Integer arithmetic of the SDM on plain ints: every function is pure and returns flags as data.

Each operation returns ``Out(value, bits, affected, undefined)``: the result (masked to the width),
the value of the flags it touches, which flags those are, and which of them SDM volume 2 leaves
undefined (these are given the value that silicon usually shows, and a comparison masks them).
"""

from __future__ import annotations

from typing import NamedTuple

CF, PF, AF, ZF, SF, TF, IF, DF, OF = (
    1 << 0,
    1 << 2,
    1 << 4,
    1 << 6,
    1 << 7,
    1 << 8,
    1 << 9,
    1 << 10,
    1 << 11,
)
IOPL, NT, RF, VM, AC, VIF, VIP, ID = (
    3 << 12,
    1 << 14,
    1 << 16,
    1 << 17,
    1 << 18,
    1 << 19,
    1 << 20,
    1 << 21,
)
STATUS = CF | PF | AF | ZF | SF | OF


class Out(NamedTuple):
    value: int
    bits: int
    affected: int
    undefined: int = 0


class DivideError(Exception):
    """#DE: divisor zero, or a quotient that does not fit."""


def mask(width: int) -> int:
    return (1 << width) - 1


def signed(value: int, width: int) -> int:
    value &= mask(width)
    return value - (1 << width) if value >> (width - 1) else value


def _parity(value: int) -> int:
    return PF if bin(value & 0xFF).count("1") % 2 == 0 else 0


def _szp(value: int, width: int) -> int:
    bits = _parity(value)
    if value == 0:
        bits |= ZF
    if value >> (width - 1):
        bits |= SF
    return bits


def add(a: int, b: int, width: int, carry: int = 0) -> Out:
    total = a + b + carry
    value = total & mask(width)
    bits = _szp(value, width)
    if total > mask(width):
        bits |= CF
    if (a & 15) + (b & 15) + carry > 15:
        bits |= AF
    if signed(a, width) + signed(b, width) + carry != signed(value, width):
        bits |= OF
    return Out(value, bits, STATUS)


def sub(a: int, b: int, width: int, borrow: int = 0) -> Out:
    value = (a - b - borrow) & mask(width)
    bits = _szp(value, width)
    if a < b + borrow:
        bits |= CF
    if (a & 15) < (b & 15) + borrow:
        bits |= AF
    if signed(a, width) - signed(b, width) - borrow != signed(value, width):
        bits |= OF
    return Out(value, bits, STATUS)


def inc(a: int, width: int) -> Out:
    out = add(a, 1, width)
    return Out(out.value, out.bits & ~CF, STATUS & ~CF)


def dec(a: int, width: int) -> Out:
    out = sub(a, 1, width)
    return Out(out.value, out.bits & ~CF, STATUS & ~CF)


def neg(a: int, width: int) -> Out:
    return sub(0, a, width)


def logic(value: int, width: int) -> Out:
    return Out(value, _szp(value, width), STATUS, AF)


def _count(count: int, width: int) -> int:
    return count & (63 if width == 64 else 31)


def shl(a: int, count: int, width: int) -> Out:
    n = _count(count, width)
    if n == 0:
        return Out(a, 0, 0)
    value = (a << n) & mask(width)
    bits = _szp(value, width)
    undefined = AF
    carry = (a >> (width - n)) & 1 if n <= width else 0
    if carry:
        bits |= CF
    if n >= width:
        undefined |= CF
    if n == 1:
        if (value >> (width - 1)) ^ carry:
            bits |= OF
    else:
        undefined |= OF
    return Out(value, bits, STATUS, undefined)


def shr(a: int, count: int, width: int) -> Out:
    n = _count(count, width)
    if n == 0:
        return Out(a, 0, 0)
    value = a >> n
    bits = _szp(value, width)
    undefined = AF
    if (a >> (n - 1)) & 1:
        bits |= CF
    if n >= width:
        undefined |= CF
    if n == 1:
        if a >> (width - 1):
            bits |= OF
    else:
        undefined |= OF
    return Out(value, bits, STATUS, undefined)


def sar(a: int, count: int, width: int) -> Out:
    n = _count(count, width)
    if n == 0:
        return Out(a, 0, 0)
    s = signed(a, width)
    value = (s >> n) & mask(width)
    bits = _szp(value, width)
    if (s >> (n - 1)) & 1:
        bits |= CF
    return Out(value, bits, STATUS, AF if n == 1 else AF | OF)


def rol(a: int, count: int, width: int) -> Out:
    n = _count(count, width)
    if n == 0:
        return Out(a, 0, 0)
    k = n % width
    value = ((a << k) | (a >> (width - k))) & mask(width) if k else a
    bits = CF if value & 1 else 0
    if (value >> (width - 1)) ^ (value & 1):
        bits |= OF
    return Out(value, bits, CF | OF, 0 if n == 1 else OF)


def ror(a: int, count: int, width: int) -> Out:
    n = _count(count, width)
    if n == 0:
        return Out(a, 0, 0)
    k = n % width
    value = ((a >> k) | (a << (width - k))) & mask(width) if k else a
    top = value >> (width - 1)
    bits = CF if top else 0
    if top ^ ((value >> (width - 2)) & 1):
        bits |= OF
    return Out(value, bits, CF | OF, 0 if n == 1 else OF)


def rcl(a: int, carry: int, count: int, width: int) -> Out:
    return _through_carry(a, carry, count, width, left=True)


def rcr(a: int, carry: int, count: int, width: int) -> Out:
    return _through_carry(a, carry, count, width, left=False)


def _through_carry(a: int, carry: int, count: int, width: int, *, left: bool) -> Out:
    n = _count(count, width)
    if n == 0:
        return Out(a, 0, 0)
    for _ in range(n):
        if left:
            a = a << 1 | carry
            carry, a = a >> width, a & mask(width)
        else:
            a |= carry << width
            carry, a = a & 1, a >> 1
    top = a >> (width - 1)
    bits = CF if carry else 0
    if top ^ (carry if left else a >> (width - 2) & 1):
        bits |= OF
    return Out(a, bits, CF | OF, 0 if n == 1 else OF)


def shld(a: int, b: int, count: int, width: int) -> Out:
    n = _count(count, width)
    if n == 0:
        return Out(a, 0, 0)
    if n > width:
        # SDM: the destination and all flags are undefined (16-bit operands only).
        return Out(a, 0, STATUS, STATUS)
    value = ((a << n) | (b >> (width - n))) & mask(width)
    bits = _szp(value, width)
    if (a >> (width - n)) & 1:
        bits |= CF
    if (a ^ value) >> (width - 1):
        bits |= OF
    return Out(value, bits, STATUS, AF if n == 1 else AF | OF)


def shrd(a: int, b: int, count: int, width: int) -> Out:
    n = _count(count, width)
    if n == 0:
        return Out(a, 0, 0)
    if n > width:
        return Out(a, 0, STATUS, STATUS)
    value = ((a >> n) | (b << (width - n))) & mask(width)
    bits = _szp(value, width)
    if (a >> (n - 1)) & 1:
        bits |= CF
    if (a ^ value) >> (width - 1):
        bits |= OF
    return Out(value, bits, STATUS, AF if n == 1 else AF | OF)


def double_shift_undefined(count: int, width: int) -> bool:
    """True where SHLD/SHRD leave even the destination undefined."""
    return _count(count, width) > width


def mul(a: int, b: int, width: int) -> Out:
    """The product in full (2 x width bits)."""
    value = a * b
    bits = CF | OF if value >> width else 0
    return Out(value, bits, STATUS, SF | ZF | AF | PF)


def imul(a: int, b: int, width: int) -> Out:
    """The product in full (2 x width bits, two's complement)."""
    full = signed(a, width) * signed(b, width)
    bits = 0 if signed(full, width) == full else CF | OF
    return Out(full & mask(2 * width), bits, STATUS, SF | ZF | AF | PF)


def div(dividend: int, divisor: int, width: int) -> tuple[int, int]:
    if divisor == 0:
        raise DivideError
    quotient, remainder = divmod(dividend, divisor)
    if quotient > mask(width):
        raise DivideError
    return quotient, remainder


def idiv(dividend: int, divisor: int, width: int) -> tuple[int, int]:
    n, d = signed(dividend, 2 * width), signed(divisor, width)
    if d == 0:
        raise DivideError
    # The SDM truncates towards zero, Python floors.
    quotient = abs(n) // abs(d)
    if (n < 0) != (d < 0):
        quotient = -quotient
    remainder = n - quotient * d
    if not -(1 << (width - 1)) <= quotient < 1 << (width - 1):
        raise DivideError
    return quotient & mask(width), remainder & mask(width)


def bit_test(a: int, index: int) -> Out:
    return Out(a, CF if (a >> index) & 1 else 0, STATUS & ~ZF, OF | SF | AF | PF)


def bsf(a: int, width: int) -> Out | None:
    """None when the source is zero (only ZF is then defined, the destination keeps its value)."""
    del width
    return Out((a & -a).bit_length() - 1, 0, STATUS, STATUS & ~ZF) if a else None


def bsr(a: int, width: int) -> Out | None:
    del width
    return Out(a.bit_length() - 1, 0, STATUS, STATUS & ~ZF) if a else None


def tzcnt(a: int, width: int) -> Out:
    value = (a & -a).bit_length() - 1 if a else width
    return Out(value, (CF if a == 0 else 0) | (ZF if value == 0 else 0), STATUS, OF | SF | PF | AF)


def lzcnt(a: int, width: int) -> Out:
    value = width - a.bit_length()
    return Out(value, (CF if a == 0 else 0) | (ZF if value == 0 else 0), STATUS, OF | SF | PF | AF)


def popcnt(a: int) -> Out:
    return Out(bin(a).count("1"), ZF if a == 0 else 0, STATUS)


def bswap(a: int, width: int) -> int:
    return int.from_bytes(a.to_bytes(width // 8, "little"), "big")


def condition(cc: int, rflags: int) -> bool:
    """The condition of the low four opcode bits of Jcc, SETcc and CMOVcc."""
    cf, zf, sf = bool(rflags & CF), bool(rflags & ZF), bool(rflags & SF)
    of, pf = bool(rflags & OF), bool(rflags & PF)
    holds = (of, cf, zf, cf or zf, sf, pf, sf != of, zf or sf != of)[cc >> 1]
    return holds != bool(cc & 1)


CONDITION_READS = (OF, CF, ZF, CF | ZF, SF, PF, SF | OF, ZF | SF | OF)
