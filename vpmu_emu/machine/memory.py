"""One way to memory: a direct-mapped TLB in the record, and reasons for a page not to be in it.

Physical memory is one host array. A hit is `((va + size - 1) & page) == tag[(va >> 12) & 255]`, which also
turns away accesses that cross a page. What must be seen (faults, code that is overwritten, pages not
dirty yet) is simply not in the TLB and takes the slow way. Tag-only caches decide time and the LLC events.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.machine.state import CLASS, N_L1, N_LLC, N_MAP, N_SLOTS, N_TLB
from vpmu_emu.machine.u64 import (
    ALL,
    ONE,
    PAGE_BASE,
    U8,
    U12,
    U16,
    U24,
    U32,
    U40,
    U48,
    U56,
    U64,
    ZERO,
)
from vpmu_emu.tables.cpus import LATENCIES

TLB_INDEX = U64(N_TLB - 1)
TLB_NONE = ONE  # no page base looks like this
U3_ = U64(3)
U5_ = U64(5)
U6_ = U64(6)
SEVEN = U64(7)
PAGE_OFFSET = U64(0xFFF)
L1_INDEX = U64(N_L1 - 1)
LLC_INDEX = U64(N_LLC - 1)
C_LLCREF = CLASS["llcref"]
C_LLCMISS = CLASS["llcmiss"]
LAT_LLC_REF = LATENCIES.index("llc_ref")
LAT_LLC_MISS = LATENCIES.index("llc_miss")
LAT_TLB_WALK = LATENCIES.index("tlb_walk")

PAGE_CODE = U64(1)  # sticky: instructions were decoded from this page
PAGE_DIRTY = U64(2)

VECTOR_SS = 12
VECTOR_GP = 13
VECTOR_PF = 14
PF_WRITE = U64(2)
PF_USER = U64(4)
PF_FETCH = U64(16)
ACCESS_READ, ACCESS_WRITE, ACCESS_FETCH = 0, 1, 2
NOWHERE = ALL


# --- bytes of the host array; LLVM merges each into one access ------------------------------------------
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
        | U64(M[p + U64_2]) << U16
        | U64(M[p + U3_]) << U24
    )


@jit(inline=True)
def ld64(M, p):
    """Eight bytes, little-endian, at host offset p."""
    return (
        U64(M[p])
        | U64(M[p + ONE]) << U8
        | U64(M[p + U64_2]) << U16
        | U64(M[p + U3_]) << U24
        | U64(M[p + U64_4]) << U32
        | U64(M[p + U5_]) << U40
        | U64(M[p + U6_]) << U48
        | U64(M[p + SEVEN]) << U56
    )


U64_2 = U64(2)
U64_4 = U64(4)
_FF = U64(0xFF)


@jit(inline=True)
def st8(M, p, v):
    """Store one byte. Modifies M."""
    M[p] = np.uint8(v & _FF)


@jit(inline=True)
def st16(M, p, v):
    """Store two bytes. Modifies M."""
    M[p] = np.uint8(v & _FF)
    M[p + ONE] = np.uint8((v >> U8) & _FF)


@jit(inline=True)
def st32(M, p, v):
    """Store four bytes. Modifies M."""
    M[p] = np.uint8(v & _FF)
    M[p + ONE] = np.uint8((v >> U8) & _FF)
    M[p + U64_2] = np.uint8((v >> U16) & _FF)
    M[p + U3_] = np.uint8((v >> U24) & _FF)


@jit(inline=True)
def st64(M, p, v):
    """Store eight bytes. Modifies M."""
    M[p] = np.uint8(v & _FF)
    M[p + ONE] = np.uint8((v >> U8) & _FF)
    M[p + U64_2] = np.uint8((v >> U16) & _FF)
    M[p + U3_] = np.uint8((v >> U24) & _FF)
    M[p + U64_4] = np.uint8((v >> U32) & _FF)
    M[p + U5_] = np.uint8((v >> U40) & _FF)
    M[p + U6_] = np.uint8((v >> U48) & _FF)
    M[p + SEVEN] = np.uint8((v >> U56) & _FF)


# --- caches ---------------------------------------------------------------------------------------------
@jit()
def cache_miss(core, line):
    """The L1 does not hold `line`: look in the LLC, fill both, return the delay in 1/16 cycle."""
    row = 0 if core.cpl == 0 else 1
    tag = np.uint32(line + ONE)
    core.l1[line & L1_INDEX] = tag
    core.total[row, C_LLCREF] += ONE
    slot = line & LLC_INDEX
    if core.llc[slot] == tag:
        return core.latency[LAT_LLC_REF]
    core.llc[slot] = tag
    core.total[row, C_LLCMISS] += ONE
    return core.latency[LAT_LLC_MISS]


@jit()
def cache_flush_line(core, line):
    """CLFLUSH: drop `line` from every level."""
    tag = np.uint32(line + ONE)
    if core.l1[line & L1_INDEX] == tag:
        core.l1[line & L1_INDEX] = np.uint32(0)
    if core.llc[line & LLC_INDEX] == tag:
        core.llc[line & LLC_INDEX] = np.uint32(0)


@jit()
def touch(core, p):
    """One data access at host offset p. Modifies the caches, core.t and the miss totals."""
    line = p >> U6_
    if core.l1[line & L1_INDEX] != np.uint32(line + ONE):
        core.t += cache_miss(core, line)


# --- translation ----------------------------------------------------------------------------------------
@jit()
def tlb_flush(core):
    """Forget every translation."""
    for i in range(N_TLB):
        core.tlb_read[i] = TLB_NONE
        core.tlb_write[i] = TLB_NONE
        core.add_read[i] = ZERO
        core.add_write[i] = ZERO


@jit()
def fault(E, vector, has_error, error):
    """Note an exception that the instruction at hand raises; the caller returns CODE_FAULT."""
    E.fault_vector = vector
    E.fault_has_error = has_error
    E.fault_error = error
    E.fault_canonical = 1


@jit()
def physical(core, gpa):
    """Host offset of a physical address of the running program, NOWHERE outside its memory."""
    for i in range(N_SLOTS):
        if gpa - core.slot_gpa[i] < core.slot_size[i]:
            return core.slot_hpa[i] + (gpa - core.slot_gpa[i])
    return NOWHERE


@jit()
def translate(core, E, va, access):
    """Host offset for a virtual address, NOWHERE with the fault noted in E."""
    high = va >> U64_47
    if high != ZERO and high != CANONICAL_HIGH:
        fault(E, VECTOR_GP, 1, ZERO)
        E.fault_canonical = 0
        return NOWHERE
    hpa = physical(core, va)
    if hpa == NOWHERE:
        error = ZERO
        if access == ACCESS_WRITE:
            error |= PF_WRITE
        elif access == ACCESS_FETCH:
            error |= PF_FETCH
        if core.cpl > 0:
            error |= PF_USER
        fault(E, VECTOR_PF, 1, error)
        E.fault_address = va
    return hpa


U64_47 = U64(47)
CANONICAL_HIGH = U64(0x1FFFF)


@jit()
def drop_decoded(E):
    """Throw all decoded code away: something was stored where code lies."""
    if E.n_uops > 1:
        E.n_uops = 1
        E.generation += 1
        if E.generation & 0xFFFF == 0:
            for i in range(N_MAP):
                E.map_key[i] = ZERO


@jit()
def mem_read(core, M, E, va, size):
    """(0, value) of `size` bytes (uint64 1 2 4 8) at va, or (CODE_FAULT, 0). Fills the TLB."""
    p = translate(core, E, va, ACCESS_READ)
    if p == NOWHERE:
        return 16, ZERO
    last = va + size - ONE
    if (last ^ va) & PAGE_BASE == ZERO:
        slot = (va >> U12) & TLB_INDEX
        core.tlb_read[slot] = va & PAGE_BASE
        core.add_read[slot] = p - va
        core.t += core.latency[LAT_TLB_WALK]
        touch(core, p)
        v = ZERO
        for k in range(8):
            if U64(k) < size:
                v |= U64(M[p + U64(k)]) << U64(8 * k)
        return 0, v
    q = translate(core, E, last & PAGE_BASE, ACCESS_READ)
    if q == NOWHERE:
        return 16, ZERO
    touch(core, p)
    touch(core, q)
    v = ZERO
    first = (last & PAGE_BASE) - va  # bytes in the first page
    for k in range(8):
        n = U64(k)
        if n < size:
            at = p + n if n < first else q + (n - first)
            v |= U64(M[at]) << U64(8 * k)
    return 0, v


@jit()
def _note_write(E, p):
    # True if decoded code was dropped.
    page = p >> U12
    flags = U64(E.page_flags[page])
    E.page_flags[page] = np.uint8(flags | PAGE_DIRTY)
    if flags & PAGE_CODE != ZERO:
        drop_decoded(E)
        return True
    return False


@jit()
def mem_write(core, M, E, va, size, value):
    """Store `size` bytes: 0, CODE_EDGE if decoded code was dropped, CODE_FAULT if nothing was stored."""
    p = translate(core, E, va, ACCESS_WRITE)
    if p == NOWHERE:
        return 16
    last = va + size - ONE
    q = p
    first = size
    if (last ^ va) & PAGE_BASE != ZERO:
        q = translate(core, E, last & PAGE_BASE, ACCESS_WRITE)
        if q == NOWHERE:
            return 16
        first = (last & PAGE_BASE) - va
        touch(core, q)
    touch(core, p)
    dropped = _note_write(E, p)
    if first != size:
        if _note_write(E, q):
            dropped = True
    elif U64(E.page_flags[p >> U12]) & PAGE_CODE == ZERO:
        slot = (va >> U12) & TLB_INDEX
        core.tlb_write[slot] = va & PAGE_BASE
        core.add_write[slot] = p - va
        core.t += core.latency[LAT_TLB_WALK]
    for k in range(8):
        n = U64(k)
        if n < size:
            at = p + n if n < first else q + (n - first)
            M[at] = np.uint8((value >> U64(8 * k)) & _FF)
    return 2 if dropped else 0


@jit()
def read(core, M, E, va, size):
    """(code, value): as mem_read, through the TLB first."""
    slot = (va >> U12) & TLB_INDEX
    if (va + size - ONE) & PAGE_BASE == core.tlb_read[slot]:
        p = va + core.add_read[slot]
        touch(core, p)
        if size == U8:
            return 0, ld64(M, p)
        if size == U64_4:
            return 0, ld32(M, p)
        if size == U64_2:
            return 0, ld16(M, p)
        return 0, ld8(M, p)
    return mem_read(core, M, E, va, size)


@jit()
def write(core, M, E, va, size, value):
    """code: as mem_write, through the TLB first."""
    slot = (va >> U12) & TLB_INDEX
    if (va + size - ONE) & PAGE_BASE == core.tlb_write[slot]:
        p = va + core.add_write[slot]
        touch(core, p)
        if size == U8:
            st64(M, p, value)
        elif size == U64_4:
            st32(M, p, value)
        elif size == U64_2:
            st16(M, p, value)
        else:
            st8(M, p, value)
        return 0
    return mem_write(core, M, E, va, size, value)


