"""One way to memory: a direct-mapped TLB in the record, and reasons for a page not to be in it.

Physical memory is one host array. A hit is `((va + size - 1) & page) == tag[(va >> 12) & 255]`, which also
turns away accesses that cross a page. What must be seen (faults, code that is overwritten, pages not
dirty yet) is simply not in the TLB and takes the slow way. What an access costs is the caches' to say.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.machine import physical, state
from vpmu_emu.machine.breakpoints import WATCHED, debug_on, note_access, page_tag
from vpmu_emu.machine.bus import (
    OFF_RAM,
    bus_read,
    bus_read_part,
    bus_write,
    bus_write_part,
    is_mapped,
    locate,
)
from vpmu_emu.machine.cache import touch
from vpmu_emu.machine.ops import COLD_OP, OP_BREAK, OP_STALE, SYSTEM_OP
from vpmu_emu.machine.paging import (
    LEFT,
    NO_ERROR,
    access_error,
    identity,
    walk,
)
from vpmu_emu.machine.physical import ld, st
from vpmu_emu.machine.u64 import (
    ALL,
    BYTE,
    ONE,
    PAGE_BASE,
    PAGE_MASK,
    U2,
    U3,
    U12,
    U16,
    U64,
    ZERO,
)
from vpmu_emu.machine.vectors import VECTOR_GP, VECTOR_PF, VECTOR_UD
from vpmu_emu.tables.cpus import LATENCIES

TLB_INDEX = U64(state.N_TLB - 1)
TLB_NONE = ONE  # no page base looks like this
_U6 = U64(6)
_IN_WORD = U64(63)
_WORD = U64(64)
CODE_SHIFT = U64(10)  # of code_row
CODE_ROW = U64(state.N_CODE - 1)
STORED = U64(state.N_STORED - 1)
_MAP_MASK = U64(state.N_MAP - 1)
O_MOVS, O_CMPS = COLD_OP["movs"], COLD_OP["cmps"]
S_INS, S_OUTS = SYSTEM_OP["ins"], SYSTEM_OP["outs"]
LAT_TLB_WALK = LATENCIES.index("tlb_walk")

_U47 = U64(47)
_CANONICAL_HIGH = U64(0x1FFFF)


# --- translation ----------------------------------------------------------------------------------------
@jit()
def tlb_flush(core, everything):
    """Forget translations: all of them, or with `everything` 0 (a write to CR3) all but global ones."""
    for ring in range(2):
        for i in range(state.N_TLB):
            if everything != 0 or core.global_read[ring, i] == np.uint8(0):
                core.tlb_read[ring, i] = TLB_NONE
                core.add_read[ring, i] = ZERO
                core.global_read[ring, i] = np.uint8(0)
            if everything != 0 or core.global_write[ring, i] == np.uint8(0):
                core.tlb_write[ring, i] = TLB_NONE
                core.add_write[ring, i] = ZERO
                core.global_write[ring, i] = np.uint8(0)
    for i in range(state.N_ITLB):
        core.itlb_page[i] = ZERO
        core.itlb_add[i] = ZERO
    core.itlb_n = 0


@jit()
def fault(E, vector, has_error, error):
    """Note an exception that the instruction at hand raises; the caller returns CODE_FAULT."""
    E.fault_vector = vector
    E.fault_has_error = has_error
    E.fault_error = error
    E.fault_canonical = 1


@jit()
def _page_fault(E, va, error):
    fault(E, VECTOR_PF, 1, error)
    E.fault_address = va


@jit()
def translate(core, M, E, va, access):
    """Host offset for a virtual address; NOWHERE with the fault (or EPT violation) noted in E, or OFF_RAM.

    E.bus_address is then the physical address, and E.page_global whether the page is global.
    """
    high = va >> _U47
    if high != ZERO and high != _CANONICAL_HIGH:
        fault(E, VECTOR_GP, 1, ZERO)
        E.fault_canonical = 0
        return physical.NOWHERE
    if identity(core):
        p = locate(core, M, E, va, access)
        E.page_global = 0
        if p == OFF_RAM and not is_mapped(core, va):
            _page_fault(E, va, access_error(core, access))
            return physical.NOWHERE
        return p
    gpa, error, shared = walk(core, M, E, va, access)
    if error != NO_ERROR:
        if error != LEFT:
            _page_fault(E, va, error)
        return physical.NOWHERE
    E.page_global = 0 if shared == ZERO else 1
    return locate(core, M, E, gpa, access)


@jit()
def fetch_address(core, M, E, va):
    """Host offset of an instruction's byte, NOWHERE with the fault noted in E.

    Pages that code was fetched from stay translated in the record until a flush: throwing decoded code
    away, which is no event of the machine, must not make it walk again.
    """
    if identity(core):
        p = translate(core, M, E, va, physical.ACCESS_FETCH)
        if p == OFF_RAM:
            fault(E, VECTOR_UD, 0, ZERO)
            return physical.NOWHERE
        return p
    page = va & PAGE_BASE
    key = page | (U2 if core.cpl > 0 else ONE)
    for k in range(core.itlb_n):
        if core.itlb_page[k] == key:
            return va + core.itlb_add[k]
    p = translate(core, M, E, va, physical.ACCESS_FETCH)
    if p == OFF_RAM:
        fault(E, VECTOR_UD, 0, ZERO)  # an open bus reads FF FF: no instruction
        return physical.NOWHERE
    if p == physical.NOWHERE:
        return p
    if core.itlb_n == state.N_ITLB:
        for k in range(state.N_ITLB):
            core.itlb_page[k] = ZERO
            core.itlb_add[k] = ZERO
        core.itlb_n = 0
        drop_decoded(E)
    core.itlb_page[core.itlb_n] = key
    core.itlb_add[core.itlb_n] = p - va
    core.itlb_n += 1
    return p


@jit()
def drop_decoded(E):
    """Throw all decoded code away."""
    if E.n_uops > 1:
        E.n_uops = 1
        E.n_code = 0
        E.generation += 1
        if E.generation & (state.GENERATIONS - 1) == 0:  # keys hold that much of it
            for i in range(state.N_MAP):
                E.map_key[i] = ZERO


@jit(inline=True)
def map_slot(rip):
    """Where the map of decoded code keeps a linear address."""
    return (rip ^ (rip >> U16)) & _MAP_MASK


@jit()
def _drop_line(E, row, line, first, last):
    """Of decoded code that begins in one line of a page, throw away what has one of the bytes first..last.

    Others may know such a micro-op as what comes next: it stays where it is, and looks itself up.
    False if that cannot be done: a REP instruction that changes itself goes on as it was, and nothing says
    which native code has it.
    """
    after = 0
    n = np.int64(E.code_line[row, line])
    while n != 0:
        u = E.uops[n]
        before = np.int64(E.code_before[n])
        start = np.int64(u.rip & PAGE_MASK)
        if start > last or start + np.int64(E.code_span[n]) <= first:
            after = n
        else:
            if E.code_native[n] != 0:
                E.native_page[E.native_drops % state.N_NATIVE_PAGES] = u.rip & PAGE_BASE
                E.native_drops += 1
                return False
            op = np.int64(u.op)
            if u.cc != 0 and ((op >= O_MOVS and op <= O_CMPS) or op == S_INS or op == S_OUTS):
                return False
            if op != OP_BREAK:
                u.op = OP_STALE
            slot = map_slot(u.rip)
            if np.int64(E.map_uop[slot]) == n:
                E.map_key[slot] = ZERO
            if after == 0:
                E.code_line[row, line] = before
            else:
                E.code_before[after] = before
        n = before
    return True


@jit()
def _drop_code(E, p, size):
    """Throw away what is decoded of `size` bytes (8 at the most, in one page) at host offset p."""
    row = np.int64(E.code_row[p >> U12] & CODE_ROW)
    first = np.int64(p & PAGE_MASK)
    last = first + np.int64(size) - 1
    reach = state.MAX_LENGTH - 1
    if first < reach and E.code_line[row, state.CODE_LINES] != 0:
        drop_decoded(E)
        return
    for line in range(max(first - reach, 0) >> 6, (last >> 6) + 1):
        if not _drop_line(E, row, line, first, last):
            drop_decoded(E)
            return
    for k in range(first, last + 1):
        E.code_bytes[row, k >> 6] &= ~(ONE << (U64(k) & _IN_WORD))


@jit()
def _load(M, p, size):
    v = ZERO
    for k in range(8):
        if U64(k) < size:
            v |= U64(M[p + U64(k)]) << U64(8 * k)
    return v


@jit()
def _read_parts(core, M, E, p, gpa, q, first, size):
    """(code, value) of a read over two pages, not both in memory: `gpa` is the first one's address."""
    other = E.bus_address
    low = ZERO
    high = ZERO
    if p == OFF_RAM:
        code, low = bus_read_part(core, E, gpa, first)
        if code != 0:
            return code, ZERO
    else:
        low = _load(M, p, first)
    if q == OFF_RAM:
        code, high = bus_read_part(core, E, other, size - first)
        if code != 0:
            return code, ZERO
    else:
        high = _load(M, q, size - first)
    return 0, low | high << (first << U3)


@jit()
def _write_parts(core, M, E, p, gpa, q, first, size, value):
    """code of a write over two pages, not both in memory."""
    other = E.bus_address
    high = value >> (first << U3)
    code = 0
    if p == OFF_RAM:
        code = bus_write_part(core, E, gpa, first, value)
        if code != 0:
            return code
    if q == OFF_RAM:
        code = bus_write_part(core, E, other, size - first, high)
        if code != 0:
            return code
        if p != OFF_RAM:
            code = 2 if note_write(E, p, first) else 0
            _store(M, p, first, value)
    else:
        code = 2 if note_write(E, q, size - first) else 0
        _store(M, q, size - first, high)
    return code


@jit()
def data_tag(E, page):
    """WATCHED if a debugger waits somewhere in a page (its linear address), else 0: part of a TLB tag."""
    for k in range(E.n_data):
        first = E.data_first[k]
        if first & PAGE_BASE == page or (first + E.data_size[k] - ONE) & PAGE_BASE == page:
            return WATCHED
    return ZERO


@jit()
def _note_data(core, E, va, size, mode):
    # A debugger sees the program's accesses, and those that a hypervisor does for it.
    if core.vmx.nonroot == 0 and core.kernel != 0 and E.emulating == 0:
        return
    for k in range(E.n_data):
        first = E.data_first[k]
        if E.data_mode[k] & mode != 0 and (first - va < size or va - first < E.data_size[k]):
            E.data_hit |= 1 << k
            E.stop_request = 1


@jit()
def _is_watched(va, size, tag):
    """Whether a TLB entry with this tag would be hit, if it were not for breakpoints."""
    return tag == (va & PAGE_BASE) | WATCHED and ((va + size - ONE) ^ va) & PAGE_BASE == ZERO


@jit()
def mem_read(core, M, E, va, size):
    """(0, value) of `size` bytes (uint64 1 2 4 8) at va, or (CODE_FAULT, 0). Fills the TLB."""
    if debug_on(core) or E.n_data != 0:
        note_access(core, E, va, size, 0)
        _note_data(core, E, va, size, 1)
        ring = 0 if core.cpl == 0 else 1
        slot = (va >> U12) & TLB_INDEX
        if _is_watched(va, size, core.tlb_read[ring, slot]):
            p = va + core.add_read[ring, slot]
            touch(core, p)
            return 0, _load(M, p, size)
    # A read that is to be written back asks for the right to write at once: its fault is a write's.
    access = physical.ACCESS_READ if E.intent == 0 else physical.ACCESS_WRITE
    p = translate(core, M, E, va, access)
    if p == physical.NOWHERE:
        return 16, ZERO
    last = va + size - ONE
    gpa = E.bus_address
    if (last ^ va) & PAGE_BASE == ZERO:
        if p == OFF_RAM:
            return bus_read(core, E, size)
        slot = (va >> U12) & TLB_INDEX
        ring = 0 if core.cpl == 0 else 1
        core.tlb_read[ring, slot] = page_tag(core, va & PAGE_BASE) | data_tag(E, va & PAGE_BASE)
        core.add_read[ring, slot] = p - va
        core.global_read[ring, slot] = np.uint8(E.page_global)
        core.t += core.latency[LAT_TLB_WALK]
        touch(core, p)
        return 0, ld(M, p, size)
    q = translate(core, M, E, last & PAGE_BASE, access)
    if q == physical.NOWHERE:
        return 16, ZERO
    if p == OFF_RAM or q == OFF_RAM:
        if core.vmx.nonroot == 0:
            return 0, ALL >> (U64(64) - (size << U3))  # no device answers half an access
        return _read_parts(core, M, E, p, gpa, q, (last & PAGE_BASE) - va, size)
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
def holds_decoded(E, p, size):
    """Whether any of `size` bytes (8 at the most, in one page) at host offset p is part of decoded code."""
    at = E.code_row[p >> U12]
    if at >> CODE_SHIFT != U64(E.generation):
        return False
    offset = p & PAGE_MASK
    word = offset >> _U6
    first = offset & _IN_WORD
    mask = (ONE << size) - ONE
    row = at & CODE_ROW
    if E.code_bytes[row, word] & (mask << first) != ZERO:
        return True
    return first + size > _WORD and E.code_bytes[row, word + ONE] & (mask >> (_WORD - first)) != ZERO


@jit()
def note_write(E, p, size):
    """`size` bytes (8 at the most, in one page) at host offset p are overwritten: True if that was code.

    What was decoded from them is thrown away then. Modifies E.
    """
    page = p >> U12
    flags = U64(E.page_flags[page])
    E.page_flags[page] = np.uint8(flags | physical.PAGE_DIRTY)
    if flags & physical.PAGE_CODE != ZERO and holds_decoded(E, p, size):
        # It may have been data that decoding met as it looked ahead: it will stop there.
        first = p >> U3
        last = (p + size - ONE) >> U3
        E.stored[first & STORED] = first + ONE
        E.stored[last & STORED] = last + ONE
        _drop_code(E, p, size)
        return True
    return False


@jit()
def _store(M, p, size, value):
    for k in range(8):
        if U64(k) < size:
            M[p + U64(k)] = np.uint8((value >> U64(8 * k)) & BYTE)


@jit()
def mem_write(core, M, E, va, size, value):
    """Store `size` bytes: 0, CODE_EDGE if decoded code was dropped, CODE_FAULT if nothing was stored."""
    if debug_on(core) or E.n_data != 0:
        note_access(core, E, va, size, 1)
        _note_data(core, E, va, size, 2)
        ring = 0 if core.cpl == 0 else 1
        slot = (va >> U12) & TLB_INDEX
        if _is_watched(va, size, core.tlb_write[ring, slot]):
            p = va + core.add_write[ring, slot]
            touch(core, p)
            _store(M, p, size, value)
            return 0
    p = translate(core, M, E, va, physical.ACCESS_WRITE)
    if p == physical.NOWHERE:
        return 16
    shared = E.page_global
    gpa = E.bus_address
    last = va + size - ONE
    q = p
    first = size
    if (last ^ va) & PAGE_BASE != ZERO:
        q = translate(core, M, E, last & PAGE_BASE, physical.ACCESS_WRITE)
        if q == physical.NOWHERE:
            return 16
        first = (last & PAGE_BASE) - va
        if p == OFF_RAM or q == OFF_RAM:
            if core.vmx.nonroot == 0:
                return 0
            return _write_parts(core, M, E, p, gpa, q, first, size, value)
        touch(core, q)
    elif p == OFF_RAM:
        return bus_write(core, E, size, value)
    touch(core, p)
    dropped = note_write(E, p, first)
    if first != size:
        if note_write(E, q, size - first):
            dropped = True
    elif U64(E.page_flags[p >> U12]) & physical.PAGE_CODE == ZERO:
        slot = (va >> U12) & TLB_INDEX
        ring = 0 if core.cpl == 0 else 1
        core.tlb_write[ring, slot] = page_tag(core, va & PAGE_BASE) | data_tag(E, va & PAGE_BASE)
        core.add_write[ring, slot] = p - va
        core.global_write[ring, slot] = np.uint8(shared)
        core.t += core.latency[LAT_TLB_WALK]
    if first == size:
        st(M, p, size, value)
        return 2 if dropped else 0
    for k in range(8):
        n = U64(k)
        if n < size:
            at = p + n if n < first else q + (n - first)
            M[at] = np.uint8((value >> U64(8 * k)) & BYTE)
    return 2 if dropped else 0


@jit(inline=True)
def read_here(core, M, E, ring, va, size):
    """(code, value): as mem_read, through the TLB of a ring first: 0 of CPL 0, else 1."""
    slot = (va >> U12) & TLB_INDEX
    if (va + size - ONE) & PAGE_BASE == core.tlb_read[ring, slot]:
        p = va + core.add_read[ring, slot]
        touch(core, p)
        return 0, ld(M, p, size)
    return mem_read(core, M, E, va, size)


@jit(inline=True)
def write_here(core, M, E, ring, va, size, value):
    """code: as mem_write, through the TLB of a ring first."""
    slot = (va >> U12) & TLB_INDEX
    if (va + size - ONE) & PAGE_BASE == core.tlb_write[ring, slot]:
        p = va + core.add_write[ring, slot]
        touch(core, p)
        st(M, p, size, value)
        return 0
    return mem_write(core, M, E, va, size, value)


@jit()
def read(core, M, E, va, size):
    """(code, value): as mem_read, through the TLB first."""
    return read_here(core, M, E, 0 if core.cpl == 0 else 1, va, size)


@jit()
def write(core, M, E, va, size, value):
    """code: as mem_write, through the TLB first."""
    return write_here(core, M, E, 0 if core.cpl == 0 else 1, va, size, value)
