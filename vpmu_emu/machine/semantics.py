"""What each instruction computes, written once: pure functions of operands and flags, for every width.

Operands come zero-extended. `sh` is 64 minus the operand size in bits. Flags are three words: `fz` is zero
iff ZF, `fs` has SF in bit 63 and the byte whose parity is PF below, `cv` is the vector of carries: CF in
bit 63, OF as bit 63 ^ bit 62, AF in bit 3. Additions and subtractions get all three for four logic
operations; nothing needs to remember which instruction set them.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit, mul_high
from vpmu_emu.machine.bits import highest_bit, parity
from vpmu_emu.machine.processor_flags import (
    X86_EFLAGS_AF,
    X86_EFLAGS_CF,
    X86_EFLAGS_OF,
    X86_EFLAGS_PF,
    X86_EFLAGS_SF,
    X86_EFLAGS_STATUS,
    X86_EFLAGS_ZF,
)
from vpmu_emu.machine.u64 import (
    ALL,
    BYTE,
    LOW32,
    ONE,
    TOP,
    U2,
    U7,
    U8,
    U32,
    U56,
    U62,
    U63,
    U64,
    ZERO,
)

SH8 = U64(56)
SH16 = U64(48)
SH32 = U64(32)
SH64 = U64(0)
U31 = U64(31)
U11 = U64(11)
U64_64 = U64(64)
CRC32C = 0x82F6_3B78  # the polynomial 11EDC6F41H, bits reflected
CF = X86_EFLAGS_CF
PF = X86_EFLAGS_PF
AF = X86_EFLAGS_AF
ZF = X86_EFLAGS_ZF
SF = X86_EFLAGS_SF
OF = X86_EFLAGS_OF
STATUS_FLAGS = X86_EFLAGS_STATUS


# --- flags ----------------------------------------------------------------------------------------------
@jit(inline=True)
def norm(r, sh):
    """A result as it goes into fz and fs."""
    return (r << sh) | (r & BYTE)


@jit(inline=True)
def carries(v, sh):
    """A carry vector over the low bits, moved up to where the flags are read."""
    return (v << sh) | (v & U8)


@jit(inline=True)
def cf_of(cf, of):
    """A carry vector with the given CF and OF (0 or 1), AF 0."""
    return (cf << U63) | ((cf ^ of) << U62)


@jit(inline=True)
def carry(cv):
    """CF as 0 or 1."""
    return cv >> U63


@jit(inline=True)
def overflow(cv):
    """OF as 0 or 1."""
    return (cv ^ (cv << ONE)) >> U63


@jit()
def pack_flags(fz, fs, cv):
    """CF PF AF ZF SF OF at their places in RFLAGS."""
    f = carry(cv) | (parity(fs) << U2) | ((cv & U8) << ONE) | (overflow(cv) << U11)
    f |= (fs >> U63) << U7
    if fz == ZERO:
        f |= ZF
    return f


@jit()
def unpack_flags(flags):
    """(fz, fs, cv) that give these flags."""
    fz = ZERO if flags & ZF != ZERO else ONE
    fs = (flags & SF) << U56
    if flags & PF == ZERO:
        fs |= ONE
    cf = flags & CF
    of = (flags & OF) >> U11
    return fz, fs, cf_of(cf, of) | ((flags & AF) >> ONE)


@jit(inline=True)
def condition(cc, fz, fs, cv):
    """Whether condition 0..15 (the low opcode bits of Jcc) holds, 1 or 0 as int64."""
    kind = cc >> 1
    if kind == 0:
        holds = overflow(cv) != ZERO
    elif kind == 1:
        holds = cv >= TOP
    elif kind == 2:
        holds = fz == ZERO
    elif kind == 3:
        holds = cv >= TOP or fz == ZERO
    elif kind == 4:
        holds = fs >= TOP
    elif kind == 5:
        holds = parity(fs) != ZERO
    elif kind == 6:
        holds = (fs ^ cv ^ (cv << ONE)) >= TOP
    else:
        holds = (fs ^ cv ^ (cv << ONE)) >= TOP or fz == ZERO
    return (1 if holds else 0) ^ (cc & 1)


# --- arithmetic and logic: (x, y, cv, sh) -> (result, cv) ------------------------------------------------
@jit(inline=True)
def add(x, y, cv, sh):
    """x + y."""
    z = (x + y) & (ALL >> sh)
    return z, carries((x & y) | ((x | y) & ~z), sh)


@jit(inline=True)
def adc(x, y, cv, sh):
    """x + y + CF."""
    z = (x + y + carry(cv)) & (ALL >> sh)
    return z, carries((x & y) | ((x | y) & ~z), sh)


@jit(inline=True)
def sub(x, y, cv, sh):
    """x - y."""
    z = (x - y) & (ALL >> sh)
    return z, carries((~x & y) | ((~x | y) & z), sh)


@jit(inline=True)
def sbb(x, y, cv, sh):
    """x - y - CF."""
    z = (x - y - carry(cv)) & (ALL >> sh)
    return z, carries((~x & y) | ((~x | y) & z), sh)


@jit(inline=True)
def and_(x, y, cv, sh):
    """x AND y; CF and OF are cleared."""
    return x & y, ZERO


@jit(inline=True)
def or_(x, y, cv, sh):
    """x OR y; CF and OF are cleared."""
    return x | y, ZERO


@jit(inline=True)
def xor(x, y, cv, sh):
    """x XOR y; CF and OF are cleared."""
    return x ^ y, ZERO


@jit(inline=True)
def inc(x, y, cv, sh):
    """x + 1; CF stays."""
    z = (x + ONE) & (ALL >> sh)
    v = carries((x & ONE) | ((x | ONE) & ~z), sh)
    return z, cf_of(carry(cv), overflow(v)) | (v & U8)


@jit(inline=True)
def dec(x, y, cv, sh):
    """x - 1; CF stays."""
    z = (x - ONE) & (ALL >> sh)
    v = carries((~x & ONE) | ((~x | ONE) & z), sh)
    return z, cf_of(carry(cv), overflow(v)) | (v & U8)


@jit(inline=True)
def neg(x, y, cv, sh):
    """0 - x."""
    z = (~x + ONE) & (ALL >> sh)
    return z, carries(x | z, sh)


@jit(inline=True)
def sext(x, sh):
    """Sign-extend to 64 bits."""
    top = (x << sh) >> U63
    return x | (~(ALL >> sh) & (~top + ONE))


# --- shifts: n is masked by the caller and not 0 ---------------------------------------------------------
@jit(inline=True)
def shift_count(n, sh):
    """SDM: counts are taken modulo 64 for 64-bit operands and modulo 32 for all others."""
    return n & (U63 if sh == ZERO else U31)


@jit(inline=True)
def shl(x, n, cv, sh):
    """Shift left."""
    z = (x << n) & (ALL >> sh)
    cf = (x >> (U64_64 - n)) if sh == ZERO else ((x << n) >> (U64_64 - sh))
    cf = cf & ONE
    return z, cf_of(cf, cf ^ ((z << sh) >> U63))


@jit(inline=True)
def shr(x, n, cv, sh):
    """Shift right, zeros come in."""
    cf = (x >> (n - ONE)) & ONE
    return x >> n, cf_of(cf, (x << sh) >> U63)


@jit(inline=True)
def sar(x, n, cv, sh):
    """Shift right, the sign comes in."""
    top = (x << sh) >> U63
    wide = x | (~(ALL >> sh) & (~top + ONE))
    z = ((wide >> n) | (~(ALL >> n) & (~top + ONE))) & (ALL >> sh)
    return z, cf_of((wide >> (n - ONE)) & ONE, ZERO)


@jit(inline=True)
def rol(x, n, cv, sh):
    """Rotate left; only CF and OF change."""
    bits = U64_64 - sh
    k = n % bits
    z = x if k == ZERO else ((x << k) | (x >> (bits - k))) & (ALL >> sh)
    cf = z & ONE
    return z, cf_of(cf, cf ^ ((z << sh) >> U63)) | (cv & U8)


@jit(inline=True)
def ror(x, n, cv, sh):
    """Rotate right; only CF and OF change."""
    bits = U64_64 - sh
    k = n % bits
    z = x if k == ZERO else ((x >> k) | (x << (bits - k))) & (ALL >> sh)
    cf = (z << sh) >> U63
    return z, cf_of(cf, cf ^ (((z << sh) >> U62) & ONE)) | (cv & U8)


@jit()
def rcl(x, n, cv, sh):
    """Rotate left through CF; only CF and OF change."""
    bits = U64_64 - sh
    k = n % (bits + ONE)
    cf = cv >> U63
    z = x
    if k != ZERO:
        z = (x << k) | (cf << (k - ONE))
        if k > ONE:
            z |= x >> (bits + ONE - k)
        z &= ALL >> sh
        cf = (x >> (bits - k)) & ONE
    return z, cf_of(cf, cf ^ ((z << sh) >> U63)) | (cv & U8)


@jit()
def rcr(x, n, cv, sh):
    """Rotate right through CF; only CF and OF change."""
    bits = U64_64 - sh
    k = n % (bits + ONE)
    cf = cv >> U63
    z = x
    if k != ZERO:
        z = (x >> k) | (cf << (bits - k))
        if k > ONE:
            z |= x << (bits + ONE - k)
        z &= ALL >> sh
        cf = (x >> (k - ONE)) & ONE
    return z, cf_of(cf, ((z << sh) >> U63) ^ (((z << sh) >> U62) & ONE)) | (cv & U8)


@jit()
def shld(x, y, n, sh):
    """Shift x left by n, filling from the top of y. A 16-bit count above 16 is undefined."""
    bits = U64_64 - sh
    k = n
    if k > bits:
        k = k - bits  # what processors do: the pair x:y:x rotates
        x, y = y, x
    if k == bits:
        return y, cf_of(x & ONE, (x ^ (y >> (bits - ONE))) & ONE)
    z = ((x << k) | (y >> (bits - k))) & (ALL >> sh)
    cf = (x >> (bits - k)) & ONE
    return z, cf_of(cf, cf ^ ((z << sh) >> U63))


@jit()
def shrd(x, y, n, sh):
    """Shift x right by n, filling from the bottom of y."""
    bits = U64_64 - sh
    k = n
    if k > bits:
        k = k - bits
        x, y = y, x
    top = (x << sh) >> U63
    if k == bits:
        return y, cf_of(top, ((y << sh) >> U63) ^ top)
    z = ((x >> k) | (y << (bits - k))) & (ALL >> sh)
    return z, cf_of((x >> (k - ONE)) & ONE, ((z << sh) >> U63) ^ top)


# --- multiplication and division ------------------------------------------------------------------------
@jit()
def mul(x, y, sh):
    """(low, high, flags word): unsigned product of two operands of 64 - sh bits."""
    if sh == ZERO:
        lo = x * y
        hi = mul_high(x, y)
    else:
        p = x * y
        lo = p & (ALL >> sh)
        hi = p >> (U64_64 - sh)
    over = ONE if hi != ZERO else ZERO
    return lo, hi, cf_of(over, over)


@jit(inline=True)
def imul(x, y, sh):
    """(low, high, flags word): signed product."""
    a = sext(x, sh)
    b = sext(y, sh)
    lo64 = a * b
    if sh == ZERO:
        hi = mul_high(a, b)
        if a >= TOP:
            hi -= b
        if b >= TOP:
            hi -= a
        fits = hi == (ALL if lo64 >= TOP else ZERO)
        over = ZERO if fits else ONE
        return lo64, hi, cf_of(over, over)
    lo = lo64 & (ALL >> sh)
    hi = (lo64 >> (U64_64 - sh)) & (ALL >> sh)
    over = ZERO if sext(lo, sh) == lo64 else ONE
    return lo, hi, cf_of(over, over)


@jit()
def _div128(hi, lo, d):
    # Knuth's algorithm D with two digits of 32 bits; hi < d, so every quotient here has 64 bits.
    shift = U63 - U64(highest_bit(d))
    d = d << shift
    if shift != ZERO:
        hi = (hi << shift) | (lo >> (U64_64 - shift))
        lo = lo << shift
    top = d >> U32
    low = d & LOW32
    q = ZERO
    for k in range(2):
        digit = lo >> U32 if k == 0 else lo & LOW32
        guess = hi // top
        rest = hi % top
        while guess > LOW32 or guess * low > (rest << U32 | digit):
            guess -= ONE
            rest += top
            if rest > LOW32:
                break
        hi = (hi << U32 | digit) - guess * d
        q = q << U32 | guess
    return q, hi >> shift


@jit()
def div(hi, lo, d, sh):
    """(ok, quotient, remainder) of hi:lo by d, operands of 64 - sh bits; not ok: #DE."""
    if d == ZERO or hi >= d:
        return False, ZERO, ZERO
    if sh == ZERO:
        if hi == ZERO:
            return True, lo // d, lo % d
        q, r = _div128(hi, lo, d)
        return True, q, r
    n = (hi << (U64_64 - sh)) | lo
    return True, n // d, n % d


@jit()
def idiv(hi, lo, d, sh):
    """(ok, quotient, remainder), signed."""
    mask = ALL >> sh
    sign = TOP >> sh
    n_neg = hi & sign != ZERO
    d_neg = d & sign != ZERO
    if n_neg:
        lo = (~lo + ONE) & mask
        hi = (~hi + (ONE if lo == ZERO else ZERO)) & mask
    if d_neg:
        d = (~d + ONE) & mask
    ok, q, r = div(hi, lo, d, sh)
    if not ok:
        return False, ZERO, ZERO
    limit = sign if n_neg != d_neg else sign - ONE
    if q > limit:
        return False, ZERO, ZERO
    if n_neg != d_neg:
        q = (~q + ONE) & mask
    if n_neg:
        r = (~r + ONE) & mask
    return True, q, r


# --- bits -----------------------------------------------------------------------------------------------
@jit()
def bswap(x, sh):
    """Byte order reversed over 64 or 32 bits."""
    z = ZERO
    for k in range(8):
        z |= ((x >> U64(8 * k)) & BYTE) << U64(56 - 8 * k)
    return z >> sh


@jit()
def bit_scan(sem_reverse, x):
    """Index of the lowest (0) or highest (1) set bit of a nonzero x, as uint64."""
    if sem_reverse != 0:
        return U64(highest_bit(x))
    return U64(highest_bit(x & (~x + ONE)))


@jit()
def lzcnt(x, sh):
    """Leading zeros over 64 - sh bits."""
    if x == ZERO:
        return U64_64 - sh
    return (U63 - sh) - U64(highest_bit(x))


@jit()
def tzcnt(x, sh):
    """Trailing zeros over 64 - sh bits."""
    if x == ZERO:
        return U64_64 - sh
    return U64(highest_bit(x & (~x + ONE)))


def _crc_of_byte(z: int) -> int:
    for _ in range(8):
        z = (z >> 1) ^ (CRC32C if z & 1 else 0)
    return z


CRC_OF_BYTE = np.array([_crc_of_byte(z) for z in range(256)], dtype=np.uint64)


@jit()
def crc32(crc, x, size):
    """CRC32C of `size` bytes of x after `crc`."""
    z = crc ^ x
    for _k in range(np.int64(size)):
        z = (z >> U8) ^ CRC_OF_BYTE[z & BYTE]
    return z


@jit()
def deposit(x, mask):
    """PDEP: the low bits of x, in order, to where `mask` has ones."""
    z = ZERO
    while mask != ZERO:
        low = mask & (~mask + ONE)
        if x & ONE != ZERO:
            z |= low
        x = x >> ONE
        mask ^= low
    return z


@jit()
def extract(x, mask):
    """PEXT: the bits of x where `mask` has ones, in order, to the low end."""
    z = ZERO
    place = ONE
    while mask != ZERO:
        low = mask & (~mask + ONE)
        if x & low != ZERO:
            z |= place
        place = place << ONE
        mask ^= low
    return z
