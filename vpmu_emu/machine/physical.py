"""Physical memory is one host array: bytes are composed one by one, and slots say what lies where.

LLVM merges the plain byte compositions below into one access each, and they run uncompiled too.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.machine.state import N_SLOTS
from vpmu_emu.machine.u64 import (
    ALL,
    BYTE,
    ONE,
    U2,
    U3,
    U4,
    U7,
    U8,
    U16,
    U24,
    U32,
    U40,
    U48,
    U56,
    U64,
)

_U5 = U64(5)
_U6 = U64(6)
NOWHERE = ALL
PAGE_CODE = U64(1)  # sticky: instructions were decoded from this page
PAGE_DIRTY = U64(2)


@jit(inline=True)
def ld8(M, p):
    """One byte at host offset p."""
    return U64(M[p])


@jit(inline=True)
def ld16(M, p):
    """Two bytes, little-endian, at host offset p."""
    return U64(M[p]) | U64(M[p + ONE]) << U8


@jit(inline=True)
def ld32(M, p):
    """Four bytes, little-endian, at host offset p."""
    return (
        U64(M[p])
        | U64(M[p + ONE]) << U8
        | U64(M[p + U2]) << U16
        | U64(M[p + U3]) << U24
    )


@jit(inline=True)
def ld64(M, p):
    """Eight bytes, little-endian, at host offset p."""
    return (
        U64(M[p])
        | U64(M[p + ONE]) << U8
        | U64(M[p + U2]) << U16
        | U64(M[p + U3]) << U24
        | U64(M[p + U4]) << U32
        | U64(M[p + _U5]) << U40
        | U64(M[p + _U6]) << U48
        | U64(M[p + U7]) << U56
    )


@jit(inline=True)
def st8(M, p, v):
    """Store one byte. Modifies M."""
    M[p] = np.uint8(v & BYTE)


@jit(inline=True)
def st16(M, p, v):
    """Store two bytes. Modifies M."""
    M[p] = np.uint8(v & BYTE)
    M[p + ONE] = np.uint8((v >> U8) & BYTE)


@jit(inline=True)
def st32(M, p, v):
    """Store four bytes. Modifies M."""
    M[p] = np.uint8(v & BYTE)
    M[p + ONE] = np.uint8((v >> U8) & BYTE)
    M[p + U2] = np.uint8((v >> U16) & BYTE)
    M[p + U3] = np.uint8((v >> U24) & BYTE)


@jit(inline=True)
def st64(M, p, v):
    """Store eight bytes. Modifies M."""
    M[p] = np.uint8(v & BYTE)
    M[p + ONE] = np.uint8((v >> U8) & BYTE)
    M[p + U2] = np.uint8((v >> U16) & BYTE)
    M[p + U3] = np.uint8((v >> U24) & BYTE)
    M[p + U4] = np.uint8((v >> U32) & BYTE)
    M[p + _U5] = np.uint8((v >> U40) & BYTE)
    M[p + _U6] = np.uint8((v >> U48) & BYTE)
    M[p + U7] = np.uint8((v >> U56) & BYTE)


@jit()
def physical(core, gpa):
    """Host offset of a physical address of the running program, NOWHERE outside its memory."""
    for i in range(N_SLOTS):
        if gpa - core.slot_gpa[i] < core.slot_size[i]:
            return core.slot_hpa[i] + (gpa - core.slot_gpa[i])
    return NOWHERE
