"""64-bit values never meet signed or bare integers: the constants that keep it so.

numba types `uint64 + 1` as int64 and compares through double near 2**63; NumPy scalars differ again.
So every value is uint64, every constant an instance of `U64` made once, here or beside its use.
"""

from __future__ import annotations

import numpy as np

U64 = np.uint64
I64 = np.int64

ZERO = U64(0)
ONE = U64(1)
ALL = U64(0xFFFF_FFFF_FFFF_FFFF)
TOP = U64(1 << 63)
LOW32 = U64(0xFFFF_FFFF)

U2 = U64(2)
U3 = U64(3)
U4 = U64(4)
U7 = U64(7)
U8 = U64(8)
U12 = U64(12)
U15 = U64(15)
U16 = U64(16)
U24 = U64(24)
U31 = U64(31)
U32 = U64(32)
U40 = U64(40)
U48 = U64(48)
U56 = U64(56)
U62 = U64(62)
U63 = U64(63)
U64_BITS = U64(64)
BYTE = U64(0xFF)
WORD = U64(0xFFFF)
PAGE_MASK = U64(0xFFF)
PAGE_BASE = U64(0xFFFF_FFFF_FFFF_F000)
