"""Physical memory is one host array: bytes are composed one by one, slots say what lies where, all bounded.

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
    PAGE_MASK,
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
    ZERO,
)

_U5 = U64(5)
_U6 = U64(6)
NOWHERE = ALL
UNBACKED = ALL - U64(2)  # a slot is there, but what it shows of its owner is not
ACCESS_READ, ACCESS_WRITE, ACCESS_FETCH = 0, 1, 2
PTE_P = ONE
PTE_W = U2
PTE_U = U4
PTE_FRAME = U64(((1 << 52) - 1) & ~0xFFF)
_SHOWN = PTE_P | PTE_U
_INDEX = U64(0x1FF)
_SHOWN_END = U64(1 << 47)
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


@jit(inline=True)
def ld(M, p, size):
    """1 2 4 or 8 bytes (uint64), little-endian, at host offset p."""
    if size == U8:
        return ld64(M, p)
    if size == U4:
        return ld32(M, p)
    if size == U2:
        return ld16(M, p)
    return ld8(M, p)


@jit(inline=True)
def st(M, p, size, v):
    """Store the low 1 2 4 or 8 bytes (uint64) of v. Modifies M."""
    if size == U8:
        st64(M, p, v)
    elif size == U4:
        st32(M, p, v)
    elif size == U2:
        st16(M, p, v)
    else:
        st8(M, p, v)


@jit()
def shown(M, table, va, access):
    """Host offset of what the page tables at host offset `table` let their program have at `va`.

    UNBACKED if it could not read there, or with ACCESS_WRITE not write. Sets no accessed or dirty bits:
    this is what get_user_pages() finds, not an access of the program.
    """
    if va >= _SHOWN_END:
        return UNBACKED
    wanted = _SHOWN | PTE_W if access == ACCESS_WRITE else _SHOWN
    size = U64(len(M))
    entry = table
    for level in range(3, -1, -1):
        at = (entry & PTE_FRAME) + (((va >> U64(12 + 9 * level)) & _INDEX) << U3)
        if at >= size:
            return UNBACKED
        entry = ld64(M, at)
        if entry & wanted != wanted:
            return UNBACKED
    p = (entry & PTE_FRAME) | (va & PAGE_MASK)
    return p if p < size else UNBACKED


@jit()
def physical(core, M, gpa, access):
    """Host offset of a physical address of the running program: always one inside of M.

    Without a slot it is NOWHERE. A guest's slots lie in the address space of their owner, whose tables
    are asked each time (KVM's __gfn_to_hva_memslot() and hva_to_pfn()); UNBACKED where he has nothing.
    """
    for i in range(N_SLOTS):
        offset = gpa - core.slot_gpa[i]
        if offset < core.slot_size[i]:
            p = core.slot_at[i] + offset
            if core.slot_tables != ZERO:
                return shown(M, core.slot_tables, p, access)
            return p if p < U64(len(M)) else NOWHERE
    return NOWHERE
