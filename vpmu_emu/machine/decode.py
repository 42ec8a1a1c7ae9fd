"""Bytes become micro-operations once, at first execution; a store into those bytes throws them away.

A lookup by linear address finds the micro-op, or decodes straight ahead from there to the end of the block
or page. Which pages are marked as code depends only on what is executed, never on how far decoding looked
ahead: a block stops before an instruction that reaches into the next page.
SDM volume 2, chapter 2 for prefixes, ModRM and SIB.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.machine import ops, state
from vpmu_emu.machine.memory import (
    CODE_ROW,
    CODE_SHIFT,
    STORED,
    TLB_NONE,
    drop_decoded,
    fault,
    fetch_address,
    map_slot,
)
from vpmu_emu.machine.physical import NOWHERE, PAGE_CODE
from vpmu_emu.machine.processor_flags import X86_EFLAGS_RF
from vpmu_emu.machine.u64 import ONE, PAGE_BASE, PAGE_MASK, U3, U12, U48, U64, ZERO
from vpmu_emu.machine.vectors import VECTOR_GP
from vpmu_emu.tables.cpus import LATENCIES
from vpmu_emu.tables.instructions import MAPS, NO_PREFIX, NO_REPEAT

OP_NOP = ops.HOT_OP["nop"]
OP_FROM_SREG = ops.SYSTEM_OP["mov_from_sreg"]
OP_TO_SREG = ops.SYSTEM_OP["mov_to_sreg"]
OP_FROM_CR, OP_TO_CR = ops.SYSTEM_OP["mov_from_cr"], ops.SYSTEM_OP["mov_to_cr"]
OP_FROM_DR, OP_TO_DR = ops.SYSTEM_OP["mov_from_dr"], ops.SYSTEM_OP["mov_to_dr"]
CONTROL = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 8  # CR0, CR2, CR3, CR4, CR8
OP_LOOP = ops.HOT_OP["loop"]
FIRST_BRANCH, LAST_BRANCH = ops.HOT_OP["jmp"], OP_LOOP
N_HOT = len(ops.GENERAL_OP)
MOD_ANY = ops.MOD_CLASS["any"]
LAT_LOAD = LATENCIES.index("load")
LAT_STORE = LATENCIES.index("store")
LOAD_LANE = U64(state.LANE_BITS * state.LANES1.index("load"))
STORE_LANE = U64(state.LANE_BITS * state.LANES1.index("store"))
FIRST_SHIFT = ops.HOT_OP["shl_rr64"]
LAST_SHIFT = ops.HOT_OP["ror_rr32"]
# hot arms of the five shifts come in pairs of widths, the general ones singly, in the same order
FIRST_COLD_SHIFT = ops.COLD_OP["shl"]
_BP_MASK = U64(state.N_PREDICTOR - 1)
_U58 = U64(58)
_U6 = U64(6)
_IN_WORD = U64(63)
_LOW48 = U64((1 << 48) - 1)
_GENERATION = U64(state.GENERATIONS - 1)
_U10 = U64(10)
_MAX_BLOCK = 64
# the block builder never gets so far: one that is always zero, REP that goes on and the link behind it
BLANK, REP = state.N_UOPS - 4, state.N_UOPS - 3
LEFT = state.N_UOPS - 6  # where native code left off: nothing of it is to be undone
_MAX_LENGTH = state.MAX_LENGTH
_SIGN = np.array([0, 1 << 7, 1 << 15, 0, 1 << 31, 0, 0, 0, 1 << 63], dtype=np.uint64)
_EXTEND = np.array(
    [0, (1 << 64) - (1 << 8), (1 << 64) - (1 << 16), 0, (1 << 64) - (1 << 32), 0, 0, 0, 0], dtype=np.uint64
)
# Opcodes that are #UD on every processor in 64-bit mode (SDM 2, appendix A): nothing is missing here.
# UD2 has a row of its own; the second half stands behind 0F, UD1 and UD0 among them.
UNDEFINED = np.zeros(MAPS * 256, dtype=np.uint8)
UNDEFINED[
    [0x06, 0x07, 0x0E, 0x16, 0x17, 0x1E, 0x1F, 0x27, 0x2F, 0x37, 0x3F, 0x60, 0x61, 0x82, 0x9A, 0xCE, 0xD4,
     0xD5, 0xD6, 0xEA, 0x104, 0x10A, 0x10C, 0x10E, 0x10F, 0x124, 0x125, 0x126, 0x127, 0x136, 0x139, 0x13B,
     0x13C, 0x13D, 0x13E, 0x13F, 0x17A, 0x17B, 0x1A6, 0x1A7, 0x1B9, 0x1FF]
] = 1  # fmt: skip
OUTSIDE = 1  # in the condition field of OP_UD: outside of the table, not UD2

DECODED, FETCH_FAULT = 0, 1


@jit()
def fetch_code(core, M, E, rip, have):
    """Copy bytes at rip into E.fetch, of which `have` are there; how many there are now.

    First those of rip's page, then up to 15. No more than before: the fault is noted in E.
    """
    p = fetch_address(core, M, E, rip + U64(have))
    if p == NOWHERE:
        return have
    n = _MAX_LENGTH
    if have == 0:
        n = min(np.int64(PAGE_MASK - (rip & PAGE_MASK)) + 1, _MAX_LENGTH)
    for k in range(have, n):
        E.fetch[k] = M[p + U64(k - have)]
    return n


@jit()
def note_outside(core, M, E, rip):
    """An instruction outside of the table is executed at rip: keep the first one for the report."""
    if E.outside_n == 0:
        E.outside_rip = rip
        # Only from the page that it begins in: that one is translated, another would have to be walked.
        n = fetch_code(core, M, E, rip, 0)
        for k in range(n):
            E.outside[k] = E.fetch[k]
        E.outside_size = n
    E.outside_n += 1


@jit()
def _immediate(E, pos, size):
    v = ZERO
    for k in range(size):
        v |= U64(E.fetch[pos + k]) << U64(8 * k)
    return v


@jit()
def _sign_extend(v, size):
    if v & _SIGN[size] != ZERO:
        return v | _EXTEND[size]
    return v


@jit()
def decode(core, M, E, rip, u):
    """Decode the instruction at rip into micro-op u: DECODED, or FETCH_FAULT with the fault in E."""
    have = fetch_code(core, M, E, rip, 0)
    if have == 0:
        return FETCH_FAULT
    result = _decode(core, E, rip, u, have)
    if result == DECODED or have == _MAX_LENGTH:
        return result
    # The instruction goes on in the next page: only now is that page looked at.
    more = fetch_code(core, M, E, rip, have)
    if more == have:
        return FETCH_FAULT
    return _decode(core, E, rip, u, more)


@jit()
def _decode(core, E, rip, u, have):
    """decode() of the first `have` bytes in E.fetch; FETCH_FAULT if they are not enough."""
    pos = 0
    opsize16 = False
    rep = 0
    lock = False
    seg = state.REG_ZERO
    rex = 0
    addr32 = False
    while pos < have:
        b = np.int64(E.fetch[pos])
        if b == 0x66:
            opsize16 = True
        elif b == 0xF2 or b == 0xF3:
            rep = b
        elif b == 0xF0:
            lock = True
        elif b == 0x64:
            seg = state.REG_FS
        elif b == 0x65:
            seg = state.REG_GS
        elif b == 0x67:
            addr32 = True
        elif b & 0xF0 == 0x40:
            rex = b
            pos += 1
            continue
        elif not (b == 0x2E or b == 0x36 or b == 0x3E or b == 0x26):
            break
        rex = 0  # a legacy prefix after REX takes it away
        pos += 1
    u.rip = rip
    u.imm = ZERO
    u.disp = ZERO
    u.lanes1 = ZERO
    u.lanes2 = ZERO
    u.target = -1
    u.bp = np.int64((rip ^ (rip >> _U10)) & _BP_MASK)
    u.a = state.REG_ZERO
    u.r = state.REG_ZERO
    u.b = state.REG_ZERO
    u.c = state.REG_ZERO
    u.scale = 0
    u.seg = seg
    u.width = 0
    u.width2 = 0
    u.dst = ops.K_NONE
    u.src = ops.K_NONE
    u.cc = 0
    u.lock = 1 if lock else 0
    u.addr32 = 1 if addr32 else 0
    u.emulator = 0
    u.len = 1
    E.code_size = 0
    u.cost = core.latency[0]
    u.op = ops.OP_UD
    if pos >= have:
        return _too_long(E, have)
    opcode = np.int64(E.fetch[pos])
    pos += 1
    vex = False
    third = 0  # register of VEX.vvvv
    if opcode == 0x0F:
        if pos >= have:
            return _too_long(E, have)
        opcode = 256 + np.int64(E.fetch[pos])
        pos += 1
        if opcode == 0x138 or opcode == 0x13A:
            if pos >= have:
                return _too_long(E, have)
            opcode = (512 if opcode == 0x138 else 768) + np.int64(E.fetch[pos])
            pos += 1
    elif opcode == 0xC4:
        # SDM 2 2.3.5: R X B, map; W vvvv L pp. Prefixes that it stands for are #UD before it.
        if pos + 3 > have:
            return _too_long(E, have)
        if opsize16 or rep != 0 or lock or rex != 0:
            return DECODED
        first = np.int64(E.fetch[pos])
        second = np.int64(E.fetch[pos + 1])
        table = first & 31
        if table > 3 or second & 4 != 0:
            u.cc = OUTSIDE
            return DECODED
        vex = True
        rex = 0x40 | (7 - (first >> 5)) | ((second >> 4) & 8)
        third = 15 - ((second >> 3) & 15)
        opsize16 = second & 3 == 1
        rep = 0xF3 if second & 3 == 2 else 0xF2 if second & 3 == 3 else 0
        opcode = (4 + table) * 256 + np.int64(E.fetch[pos + 2])
        pos += 3
    size = 64 if rex & 8 != 0 else 16 if opsize16 and not vex else 32
    size_bit = 4 if size == 64 else 1 if size == 16 else 2
    modrm = np.int64(E.fetch[pos]) if pos < have else -1
    form = -1
    for k in range(ops.OPCODE_START[opcode, 1]):
        f = ops.CANDIDATES[ops.OPCODE_START[opcode, 0] + k]
        need = ops.FORM_TABLE[f, ops.FC_REQUIRES]
        if (need == NO_PREFIX or need == 0x66) and (rep != 0 or opsize16 != (need == 0x66)):
            continue
        if need == NO_REPEAT and rep != 0:
            continue
        if (need > 0x67 and need != rep) or (need == 0x67 and not addr32):
            continue
        if ops.FORM_TABLE[f, ops.FC_FEATURE] & core.features != ops.FORM_TABLE[f, ops.FC_FEATURE]:
            continue
        if ops.FORM_TABLE[f, ops.FC_OPSIZES] & size_bit == 0:
            continue
        if opcode == 0x90:
            # 90 is XCHG rAX, rAX and does nothing; with REX.B it is a real exchange.
            is_nop = ops.FORM_TABLE[f, ops.FC_OP_REG] == OP_NOP
            if is_nop == (rex & 1 != 0):
                continue
        if ops.FORM_TABLE[f, ops.FC_MODRM] != 0:
            if modrm < 0:
                return _too_long(E, have)
            if ops.FORM_TABLE[f, ops.FC_FIXED] >= 0 and ops.FORM_TABLE[f, ops.FC_FIXED] != modrm:
                continue
            if ops.FORM_TABLE[f, ops.FC_DIGIT] >= 0 and ops.FORM_TABLE[f, ops.FC_DIGIT] != (modrm >> 3) & 7:
                continue
            if ops.FORM_TABLE[f, ops.FC_MOD] == 1 and modrm >> 6 != 3:
                continue
            if ops.FORM_TABLE[f, ops.FC_MOD] == 2 and modrm >> 6 == 3:
                continue
        form = f
        break
    if form < 0:
        E.code_size = pos + 1 if modrm >= 0 else pos
        u.cc = OUTSIDE - np.int64(UNDEFINED[opcode])
        return DECODED  # outside the subset: #UD when it is executed
    reg = 0
    rm = 0
    memory = False
    rip_relative = False
    if ops.FORM_TABLE[form, ops.FC_MODRM] != 0:
        pos += 1
        mod = modrm >> 6
        reg = ((modrm >> 3) & 7) | ((rex & 4) << 1)
        rm = (modrm & 7) | ((rex & 1) << 3)
        plain = ops.FORM_TABLE[form, ops.FC_MOD] != MOD_ANY
        if mod != 3 and plain and ops.FORM_TABLE[form, ops.FC_FIXED] < 0:
            memory = True
            dsize = 1 if mod == 1 else 4 if mod == 2 else 0
            if modrm & 7 == 4:
                if pos >= have:
                    return _too_long(E, have)
                sib = np.int64(E.fetch[pos])
                pos += 1
                index = ((sib >> 3) & 7) | ((rex & 2) << 2)
                if index != state.RSP:
                    u.c = index
                    u.scale = sib >> 6
                if sib & 7 == 5 and mod == 0:
                    dsize = 4
                else:
                    u.b = (sib & 7) | ((rex & 1) << 3)
            elif modrm & 7 == 5 and mod == 0:
                dsize = 4
                rip_relative = True
            else:
                u.b = rm
            if pos + dsize > have:
                return _too_long(E, have)
            u.disp = _sign_extend(_immediate(E, pos, dsize), dsize)
            pos += dsize
    k0 = ops.FORM_TABLE[form, ops.FC_K0]
    k1 = ops.FORM_TABLE[form, ops.FC_K1]
    if k0 == ops.F_MOFFS or k1 == ops.F_MOFFS:
        n = 4 if addr32 else 8
        if pos + n > have:
            return _too_long(E, have)
        u.disp = _immediate(E, pos, n)
        pos += n
        memory = True
    isize = ops.FORM_TABLE[form, ops.FC_IMM]
    isize2 = ops.FORM_TABLE[form, ops.FC_IMM2]
    if pos + isize + isize2 > have:
        return _too_long(E, have)
    imm = _immediate(E, pos, isize)
    if ops.FORM_TABLE[form, ops.FC_IMM_SIGNED] != 0:
        imm = _sign_extend(imm, isize)
    if isize2 != 0:
        u.disp = _immediate(E, pos + isize, isize2)
    pos += isize + isize2
    end = rip + U64(pos)
    if rip_relative:
        u.disp += end
    if k0 == ops.F_REL:
        imm += end
    if k1 == ops.F_ONE:
        imm = ONE
    width = ops.FORM_TABLE[form, ops.FC_WIDTH]
    width2 = ops.FORM_TABLE[form, ops.FC_WIDTH2]
    if width == 0:
        width = size
    u.len = pos
    u.width = width
    u.width2 = width2
    u.imm = imm
    # operand 1
    if (k0 == ops.F_RM and memory) or k0 == ops.F_MOFFS:
        u.dst = ops.K_MEM
    elif k0 == ops.F_IMM or k0 == ops.F_REL:
        u.dst = ops.K_IMM
    elif k0 != ops.F_NONE:
        n = reg if k0 == ops.F_REG else third if k0 == ops.F_VVVV else rm
        if k0 == ops.F_FIXED:
            n = ops.FORM_TABLE[form, ops.FC_R0]
        elif k0 == ops.F_PLUS:
            n = (opcode & 7) | ((rex & 1) << 3)
        u.dst = ops.K_REG
        if width == 8 and rex == 0 and n >= 4 and n < 8 and k0 != ops.F_FIXED:
            u.dst = ops.K_HIGH
            n -= 4
        u.a = n
    # operand 2
    if (k1 == ops.F_RM and memory) or k1 == ops.F_MOFFS:
        u.src = ops.K_MEM
    elif k1 == ops.F_IMM or k1 == ops.F_ONE:
        u.src = ops.K_IMM
    elif k1 == ops.F_CL:
        u.src = ops.K_CL
        u.r = 1
    elif k1 == ops.F_REG or k1 == ops.F_RM or k1 == ops.F_FIXED or k1 == ops.F_PLUS:
        n = reg if k1 == ops.F_REG else rm
        if k1 == ops.F_FIXED:
            n = ops.FORM_TABLE[form, ops.FC_R1]
        elif k1 == ops.F_PLUS:
            n = (opcode & 7) | ((rex & 1) << 3)
        u.src = ops.K_REG
        if width2 == 8 and rex == 0 and n >= 4 and n < 8 and k1 != ops.F_FIXED:
            u.src = ops.K_HIGH
            n -= 4
        u.r = n
    u.cc = ops.FORM_TABLE[form, ops.FC_CC]
    if ops.FORM_TABLE[form, ops.FC_K2] == ops.F_IMM:
        u.cc = ops.K_IMM
    elif ops.FORM_TABLE[form, ops.FC_K2] == ops.F_CL:
        u.cc = ops.K_CL
    elif ops.FORM_TABLE[form, ops.FC_K2] == ops.F_VVVV:
        u.cc = third
    if vex and k0 != ops.F_VVVV and ops.FORM_TABLE[form, ops.FC_K2] != ops.F_VVVV and third != 0:
        return DECODED  # VEX.vvvv that names nothing is 1111
    if ops.FORM_TABLE[form, ops.FC_REP] != 0 and rep != 0:
        u.cc = 1 if rep == 0xF3 else 2
    m = 1 if memory else 0
    op = ops.FORM_TABLE[form, ops.FC_OP_MEM] if memory else ops.FORM_TABLE[form, ops.FC_OP_REG]
    if op >= FIRST_SHIFT and op <= LAST_SHIFT:
        n = np.int64(imm) & (63 if width == 64 else 31)
        u.imm = U64(n)
        if n == 0:  # changes nothing but the upper half of a 32-bit register
            op = FIRST_COLD_SHIFT + ((op - FIRST_SHIFT) >> 1)
    if addr32 and op < N_HOT and (memory or op == OP_LOOP):
        op = ops.GENERAL_OP[op]  # arms of the loop know 64-bit addresses only
    if lock and (ops.FORM_TABLE[form, ops.FC_LOCK] == 0 or u.dst != ops.K_MEM):
        return DECODED  # LOCK without a memory destination: #UD, u.op still says so
    if op == OP_FROM_SREG and u.r & 7 > 5:
        return DECODED  # there are six segment registers
    if op == OP_TO_SREG and (u.a & 7 > 5 or u.a & 7 == 1):
        return DECODED  # nor does MOV load CS
    if (op == OP_FROM_CR or op == OP_TO_CR) and (CONTROL >> reg) & 1 == 0:
        return DECODED  # a control register that there is not
    if (op == OP_FROM_DR or op == OP_TO_DR) and reg > 7:
        return DECODED
    u.op = op
    u.rmw = ops.FORM_TABLE[form, ops.FC_RMW] if u.dst == ops.K_MEM else 0
    u.emulator = ops.FORM_TABLE[form, ops.FC_EMULATOR]
    u.lanes1 = ops.FORM_LANES1[form, m]
    cost = core.latency[ops.FORM_TABLE[form, ops.FC_COST]]
    if (u.lanes1 >> LOAD_LANE) & ONE != ZERO:
        cost += core.latency[LAT_LOAD]
    if (u.lanes1 >> STORE_LANE) & ONE != ZERO:
        cost += core.latency[LAT_STORE]
    u.cost = cost
    u.lanes2 = ops.FORM_LANES2[form, m]
    u.target = -1 - ops.FORM_TABLE[form, ops.FC_ENDS]  # -2 tells the block builder to stop
    return DECODED


@jit()
def _too_long(E, have):
    # Ran out of bytes: at 15 the instruction is too long (#GP), before that the next page is wanted.
    if have >= _MAX_LENGTH:
        fault(E, VECTOR_GP, 1, ZERO)
    return FETCH_FAULT


@jit()
def _mark_code(core, E, p):
    page = p >> U12
    flags = U64(E.page_flags[page])
    if flags & PAGE_CODE == ZERO:
        E.page_flags[page] = np.uint8(flags | PAGE_CODE)
        for ring in range(2):
            for i in range(state.N_TLB):
                tag = core.tlb_write[ring, i]
                if tag != TLB_NONE and (tag + core.add_write[ring, i]) >> U12 == page:
                    core.tlb_write[ring, i] = TLB_NONE


@jit()
def _mark_bytes(E, p, n):
    """Bytes p..p + n of the host array, all in one page, are part of decoded code from now on."""
    at = E.code_row[p >> U12]
    if at >> CODE_SHIFT != U64(E.generation):
        at = U64(E.generation) << CODE_SHIFT | U64(E.n_code)
        E.code_row[p >> U12] = at
        for k in range(state.CODE_WORDS):
            E.code_bytes[E.n_code, k] = ZERO
        for k in range(state.CODE_LINES + 1):
            E.code_line[E.n_code, k] = 0
        E.n_code += 1
    row = at & CODE_ROW
    for k in range(n):
        offset = (p + U64(k)) & PAGE_MASK
        E.code_bytes[row, offset >> _U6] |= ONE << (offset & _IN_WORD)


@jit()
def _note_place(E, n, p, size):
    """Micro-op n is made of `size` bytes from host offset p on, which are marked: a store will find it."""
    row = E.code_row[p >> U12] & CODE_ROW
    line = (p & PAGE_MASK) >> _U6
    E.code_before[n] = E.code_line[row, line]
    E.code_line[row, line] = n
    E.code_span[n] = size
    E.code_native[n] = 0


@jit()
def _was_stored(E, p, n):
    """Whether something was stored into bytes p..p + n of the host array while they were decoded."""
    at = p >> U3
    last = (p + U64(n) - ONE) >> U3
    while at <= last:
        if E.stored[at & STORED] == at + ONE:
            return True
        at += ONE
    return False


@jit(inline=True)
def map_key(E, rip):
    """What it keeps there: the address under the present generation of decoded code, space and ring.

    A page may be executable at CPL 0 and not at CPL 3: neither finds what the other has decoded.
    """
    return ((rip & _LOW48) + ONE) ^ ((U64(E.generation) & _GENERATION) << U48) ^ (U64(E.bank) << _U58)


@jit()
def _link(E, n, rip, target):
    u = E.uops[n]
    u.op = ops.OP_LINK
    u.rip = rip
    u.target = target
    u.lanes1 = ZERO
    u.lanes2 = ZERO
    u.cost = 0
    u.len = 0


@jit()
def rep_over(core, E):
    """Something comes between two iterations of REP: the instruction will be fetched again.

    Its breakpoint has been looked at: what is kept of RFLAGS says so by RF (SDM 3B 18.3.1.1).
    """
    if core.iterations != ZERO:
        core.rflags |= X86_EFLAGS_RF
        core.iterations = ZERO
        core.rep[0] = E.uops[BLANK]


@jit()
def rep_goes_on(core, E):
    """Index of the REP instruction that has begun, as it was decoded then; behind it is the way on."""
    E.uops[REP] = core.rep[0]
    core.rep[0] = E.uops[BLANK]
    u = E.uops[REP]
    _link(E, REP + 1, u.rip + U64(u.len), -1)
    return REP


@jit(inline=True)
def find(E, rip):
    """Index of the micro-op at rip if it is decoded, else -1."""
    slot = map_slot(rip)
    if E.map_key[slot] == map_key(E, rip):
        return np.int64(E.map_uop[slot])
    return -1


@jit()
def _is_break(E, rip):
    for k in range(E.n_break):
        if E.breaks[k] == rip:
            return True
    return False


@jit()
def lookup(core, M, E, rip):
    """Index of the micro-op at rip, decoding if need be; 0 is the one that raises a fetch fault."""
    found = find(E, rip)
    if found >= 0:
        return found
    if E.n_uops + _MAX_BLOCK + 2 >= BLANK or E.n_code + 2 > state.N_CODE:
        drop_decoded(E)
        E.n_code = 0
    n = E.n_uops
    first = n
    page = rip & PAGE_BASE
    start = rip
    generation = E.generation
    base = ZERO  # host offset less linear address
    while True:
        if n > first:
            known = find(E, rip)
            if known >= 0:
                _link(E, n, rip, known)
                n += 1
                break
            if rip & PAGE_BASE != page or n - first >= _MAX_BLOCK:
                _link(E, n, rip, -1)
                n += 1
                break
        u = E.uops[n]
        result = decode(core, M, E, rip, u)
        if E.generation != generation:
            # Fetching met a full table of translations: what this block has so far is thrown away too.
            generation = E.generation
            if n > first:
                n = E.n_uops
                first = n
                rip = start
                continue
        if result != DECODED:
            if n == first:
                u = E.uops[0]
                u.op = ops.OP_FETCH
                u.rip = rip
                u.lanes1 = ZERO
                u.lanes2 = ZERO
                u.cost = 0
                u.len = 0
                return 0
            _link(E, n, rip, -1)
            n += 1
            break
        size = max(np.int64(u.len), E.code_size)
        last = rip + U64(size) - ONE
        inside = size
        if n > first and _was_stored(E, base + rip, size):
            _link(E, n, rip, -1)
            n += 1
            break
        if last & PAGE_BASE != page:
            if n > first:
                _link(E, n, rip, -1)
                n += 1
                break
            inside = np.int64((last & PAGE_BASE) - rip)
            beyond = fetch_address(core, M, E, last & PAGE_BASE)
            _mark_code(core, E, beyond)
            _mark_bytes(E, beyond, size - inside)
            E.code_line[E.code_row[beyond >> U12] & CODE_ROW, state.CODE_LINES] = 1
        if n == first:
            base = fetch_address(core, M, E, rip) - rip
            _mark_code(core, E, base + rip)
        _mark_bytes(E, base + rip, inside)
        _note_place(E, n, base + rip, size)
        if _is_break(E, rip):
            u.op = ops.OP_BREAK
        slot = map_slot(rip)
        E.map_key[slot] = map_key(E, rip)
        E.map_uop[slot] = n
        n += 1
        rip = rip + U64(u.len)
        if u.target == -2:
            u.target = -1
            break
        if u.op == ops.OP_UD:
            break
    E.n_uops = n
    return first


@jit()
def instruction_at(core, M, E, rip):
    """Index of the micro-op of the instruction at rip: native code may begin there, as `lookup` says."""
    found = lookup(core, M, E, rip)
    return np.int64(E.uops[found].target) if E.uops[found].op == ops.OP_REGION else found


@jit()
def follow(core, M, E, u, to):
    """Index of the micro-op at the target of direct branch u, which asks for native code once it is hot.

    Until then `u.target` counts down from -1: what is taken rarely pays for a lookup, the rest for nothing.
    """
    generation = E.generation
    found = lookup(core, M, E, to)
    if E.generation != generation or found == 0:
        return found  # a lookup may throw everything away: then u is not ours to write to
    u.target -= 1
    if u.target < -1 - E.hot_after:
        u.target = found
        if E.hot_after != 0:
            _ask(E, found)
    return found


@jit()
def _ask(E, at):
    """Ask for native code from micro-op `at` on. Modifies E."""
    if E.uops[at].op == ops.OP_REGION or E.n_hot == state.N_HOT:
        return
    E.hot_uop[E.n_hot] = at
    E.hot_bank[E.n_hot] = E.bank
    E.hot_generation[E.n_hot] = E.generation
    E.n_hot += 1
    if E.n_hot == 1:
        E.t_slice = 0  # Python translates, or has a thread do it


@jit()
def arrive(core, M, E):
    """Index of the micro-op at core.rip, where native code left off; it is asked for too once it is hot.

    Behind a return or an indirect jump no branch counts. `u.target` does, where it is not a branch's own.
    """
    found = lookup(core, M, E, core.rip)
    u = E.uops[found]
    if u.op < FIRST_BRANCH or (u.op > LAST_BRANCH and u.op >= ops.COLD_BASE):
        u.target -= 1
        if u.target == -1 - E.hot_after:
            _ask(E, found)
    return found


@jit()
def next_region(core, E):
    """The address of the native code at core.rip, 0 if there is none that can be entered before W_LIMIT."""
    rip = core.rip
    slot = map_slot(rip)
    if E.map_key[slot] != map_key(E, rip):
        return ZERO
    u = E.uops[E.map_uop[slot]]
    if u.op != ops.OP_REGION or core.t + np.int64(u.disp) >= np.int64(E.region[state.W_LIMIT]):
        return ZERO
    return u.imm


@jit()
def follow_link(core, M, E, u):
    """Index of the micro-op that link u leads to."""
    generation = E.generation
    found = lookup(core, M, E, u.rip)
    if E.generation == generation and found > 0:
        u.target = found
    return found
