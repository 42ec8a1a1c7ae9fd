"""The general case of every instruction that needs only registers, flags and memory.

The interpreter's loop has arms for common operand shapes; all others come here, where operand kind and
width are data. Nothing is changed before the last access that can fault.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.machine import ops
from vpmu_emu.machine import semantics as sem
from vpmu_emu.machine.bits import popcount
from vpmu_emu.machine.breakpoints import WATCHED
from vpmu_emu.machine.cache import L1_INDEX, cache_flush_line
from vpmu_emu.machine.decode import LOAD_LANE, STORE_LANE
from vpmu_emu.machine.memory import (
    TLB_INDEX,
    fault,
    mem_read,
    read,
    read_here,
    write,
    write_here,
)
from vpmu_emu.machine.physical import ld, ld64, st, st64
from vpmu_emu.machine.processor_flags import X86_EFLAGS_DF, X86_EFLAGS_FIXED
from vpmu_emu.machine.semantics import (
    STATUS_FLAGS,
    bit_scan,
    bswap,
    carry,
    cf_of,
    condition,
    lzcnt,
    norm,
    pack_flags,
    sext,
    shift_count,
    tzcnt,
    unpack_flags,
)
from vpmu_emu.machine.state import (
    CLASS,
    CODE_EDGE,
    CODE_FAULT,
    CODE_JUMP,
    CODE_NEXT,
    CODE_NOT_RETIRED,
    CODE_REPEAT,
    RAX,
    RBP,
    RBX,
    RCX,
    RDI,
    RDX,
    REG_FS,
    REG_GS,
    RSI,
    RSP,
)
from vpmu_emu.machine.u64 import (
    ALL,
    BYTE,
    LOW32,
    ONE,
    PAGE_BASE,
    U2,
    U3,
    U4,
    U8,
    U12,
    U15,
    U63,
    U64,
    WORD,
    ZERO,
)
from vpmu_emu.machine.vectors import VECTOR_DE, VECTOR_GP
from vpmu_emu.tables.cpus import LATENCIES

OP = ops.COLD_OP
(O_MOV, O_ADD, O_OR, O_ADC, O_SBB, O_AND, O_SUB, O_XOR, O_CMP, O_TEST) = (
    OP[n] for n in ("mov", "add", "or", "adc", "sbb", "and", "sub", "xor", "cmp", "test")
)  # fmt: skip
O_INC, O_DEC, O_NOT, O_NEG = OP["inc"], OP["dec"], OP["not"], OP["neg"]
O_SHL, O_SHR, O_SAR, O_ROL, O_ROR = OP["shl"], OP["shr"], OP["sar"], OP["rol"], OP["ror"]
O_RCL, O_RCR = OP["rcl"], OP["rcr"]
O_SHLD, O_SHRD = OP["shld"], OP["shrd"]
O_IMUL, O_IMUL1, O_MUL, O_DIV, O_IDIV = OP["imul"], OP["imul1"], OP["mul"], OP["div"], OP["idiv"]
O_MOVZX, O_MOVSX, O_LEA, O_XCHG, O_CMPXCHG, O_XADD = (
    OP[n] for n in ("movzx", "movsx", "lea", "xchg", "cmpxchg", "xadd")
)
O_BT, O_BTS, O_BTR, O_BTC = OP["bt"], OP["bts"], OP["btr"], OP["btc"]
O_BSF, O_BSR, O_TZCNT, O_LZCNT, O_POPCNT, O_BSWAP = (
    OP[n] for n in ("bsf", "bsr", "tzcnt", "lzcnt", "popcnt", "bswap")
)
O_CDQE, O_CQO, O_PUSH, O_POP, O_JMP, O_CALL, O_RET = (
    OP[n] for n in ("cdqe", "cqo", "push", "pop", "jmp", "call", "ret")
)
O_LOOP, O_LOOPE, O_LOOPNE, O_JRCXZ, O_ENTER, O_LEAVE = (
    OP[n] for n in ("loop", "loope", "loopne", "jrcxz", "enter", "leave")
)
O_SETCC, O_CMOVCC = OP["setcc"], OP["cmovcc"]
O_MOVS, O_STOS, O_LODS, O_SCAS, O_CMPS = OP["movs"], OP["stos"], OP["lods"], OP["scas"], OP["cmps"]
O_CLD, O_STD, O_CLC, O_STC, O_CMC = OP["cld"], OP["std"], OP["clc"], OP["stc"], OP["cmc"]
O_LAHF, O_SAHF, O_CLFLUSH = OP["lahf"], OP["sahf"], OP["clflush"]
O_XLAT, O_CMPXCHG8B, O_MOVBE, O_CRC32, O_ADCX, O_ADOX = (
    OP[n] for n in ("xlat", "cmpxchg8b", "movbe", "crc32", "adcx", "adox")
)
O_ANDN, O_BEXTR, O_BLSI, O_BLSMSK, O_BLSR, O_BZHI, O_MULX, O_PDEP, O_PEXT, O_RORX, O_SARX, O_SHLX = (
    OP[n]
    for n in (
        "andn", "bextr", "blsi", "blsmsk", "blsr", "bzhi", "mulx", "pdep", "pext", "rorx", "sarx", "shlx"
    )
)  # fmt: skip

O_COMPUTE = O_ADOX  # the last one that compute() does
LAT_MISPREDICT = LATENCIES.index("mispredict")
C_TAKEN = CLASS["taken"]
C_BRMISS = CLASS["brmiss"]
C_LOAD = CLASS["load"]
C_STORE = CLASS["store"]
LAHF_FLAGS = U64(0xD5)
_U5 = U64(5)
_U6 = U64(6)
LINE = U64(64)  # bytes
_HIGH_MASK = U64(0xFF00)
_FRAME_LEVELS = U64(31)
_CANONICAL = U64(1 << 47)


@jit()
def effective(regs, u):
    """Effective address of the memory operand: without segment base, not cut to 32 bits."""
    return regs[u.b] + (regs[u.c] << U64(u.scale)) + u.disp


@jit()
def linear(regs, u, ea):
    """Linear address of an effective one, which the address size may cut."""
    if u.addr32 != 0:
        ea &= LOW32
    return ea + regs[u.seg]


@jit()
def address(regs, u):
    """Linear address of the memory operand."""
    return linear(regs, u, effective(regs, u))


@jit()
def put_address(core, u, n, value):
    """Write a register that the instruction uses for addresses or counts."""
    core.regs[n] = value & LOW32 if u.addr32 != 0 else value


@jit(inline=True)
def get(core, M, E, u, kind, n, size):
    """(code, value) of an operand: kind K_*, register n, `size` bytes (uint64)."""
    if kind == ops.K_REG:
        return CODE_NEXT, core.regs[n] & (ALL >> (U64(64) - (size << U64(3))))
    if kind == ops.K_MEM:
        return read(core, M, E, address(core.regs, u), size)
    if kind == ops.K_IMM:
        return CODE_NEXT, u.imm & (ALL >> (U64(64) - (size << U64(3))))
    if kind == ops.K_HIGH:
        return CODE_NEXT, (core.regs[n] >> U8) & BYTE
    if kind == ops.K_CL:
        return CODE_NEXT, core.regs[RCX] & BYTE
    return CODE_NEXT, ZERO


@jit()
def put_register(core, n, size, value):
    """Write the low `size` bytes of a register; four bytes clear the upper half."""
    if size == U8:
        core.regs[n] = value
    elif size == U64(4):
        core.regs[n] = value & LOW32
    elif size == U64(2):
        core.regs[n] = (core.regs[n] & ~WORD) | (value & WORD)
    else:
        core.regs[n] = (core.regs[n] & ~BYTE) | (value & BYTE)


@jit(inline=True)
def put(core, M, E, u, kind, n, size, value):
    """Store to an operand: CODE_NEXT, CODE_EDGE or CODE_FAULT."""
    if kind == ops.K_MEM:
        return write(core, M, E, address(core.regs, u), size, value)
    if kind == ops.K_REG:
        put_register(core, n, size, value)
    elif kind == ops.K_HIGH:
        core.regs[n] = (core.regs[n] & ~_HIGH_MASK) | ((value & BYTE) << U8)
    return CODE_NEXT


@jit()
def push(core, M, E, size, value):
    """Push `size` bytes; the stack pointer moves only if the store did not fault."""
    sp = core.regs[RSP] - size
    code = write(core, M, E, sp, size, value)
    if code < CODE_NOT_RETIRED:
        core.regs[RSP] = sp
    return code


@jit()
def set_flags(core, z, cv, sh):
    """Note the flags of a result. Modifies core."""
    core.fz = norm(z, sh)
    core.fs = core.fz
    core.cv = cv


@jit()
def fold_flags(core):
    """Bring the status flags of core.rflags up to date."""
    core.rflags = (core.rflags & ~STATUS_FLAGS) | pack_flags(core.fz, core.fs, core.cv)


@jit()
def spread_flags(core):
    """Take the status flags out of core.rflags."""
    core.fz, core.fs, core.cv = unpack_flags(core.rflags)


@jit()
def predict(core, u, taken):
    """Update the 2-bit predictor for a conditional branch and the totals for its outcome."""
    row = 0 if core.cpl == 0 else 1
    state = np.int64(core.predictor[u.bp])
    if taken:
        core.total[row, C_TAKEN] += ONE
        core.predictor[u.bp] = np.uint8(min(state + 1, 3))
    else:
        core.predictor[u.bp] = np.uint8(max(state - 1, 0))
    if (state >= 2) != taken:
        core.total[row, C_BRMISS] += ONE
        core.t += core.latency[LAT_MISPREDICT]


@jit(inline=True)
def _next(core, u, code):
    # A store that dropped decoded code ends the slice after this instruction.
    if code == CODE_EDGE:
        core.rip = u.rip + U64(u.len)
    return code


@jit(inline=True)
def _put_part(regs, kind, n, size, value):
    """Write a register: its low `size` bytes, or AH to DH."""
    if size >= U4:
        regs[n] = value & LOW32 if size == U4 else value
    elif kind == ops.K_HIGH:
        regs[n] = (regs[n] & ~_HIGH_MASK) | ((value & BYTE) << U8)
    else:
        kept = WORD if size == U2 else BYTE
        regs[n] = (regs[n] & ~kept) | (value & kept)


@jit()
def _bit_address(regs, u, sh, offset):
    """Where BT BTS BTR BTC find the word of a register's bit offset: beyond the operand, either way."""
    size = U64(u.width) >> U3
    width_log = U4 if size == U2 else _U5 if size == U4 else _U6
    wide = sext(offset, sh)
    words = (wide >> width_log) | (~(ALL >> width_log) if wide >> U63 != ZERO else ZERO)
    return linear(regs, u, effective(regs, u) + words * size)


@jit(inline=True)
def compute(core, M, E, u, ring, regs, fz, fs, cv):
    """Execute micro-op u of those that compute from two operands at most. Returns a CODE_* and the flags.

    Every one goes the same way: both operands, memory among them, then what it computes, then memory, then
    registers and flags. `ring` is 0 at CPL 0, else 1. The interpreter's loop contains all of it: a call
    would cost more than what most of them do.
    """
    op = np.int64(u.op)
    before = cv
    sh = U64(64) - U64(u.width)
    size = U64(u.width) >> U3
    dst = np.int64(u.dst)
    src = np.int64(u.src)
    a = np.int64(u.a)
    x = (regs[a] >> U8 if dst == ops.K_HIGH else regs[a]) & (ALL >> sh)
    if src == ops.K_IMM:
        y = u.imm & (ALL >> sh)
    else:
        y = regs[u.r] >> U8 if src == ops.K_HIGH else regs[u.r]
        y &= ALL >> (U64(64) - U64(u.width2)) if u.width2 != 0 else ALL >> sh
    va = ZERO
    if dst == ops.K_MEM or src == ops.K_MEM:
        va = address(regs, u)
        if op >= O_BT and op <= O_BTC and src == ops.K_REG:
            va = _bit_address(regs, u, sh, y)
        if (u.lanes1 >> LOAD_LANE) & ONE != ZERO:
            wide = size if dst == ops.K_MEM else U64(u.width2) >> U3
            E.intent = np.int64(u.rmw)
            code, v = read_here(core, M, E, ring, va, wide)
            E.intent = 0
            if code != CODE_NEXT:
                return code, fz, fs, cv
            if dst == ops.K_MEM:
                x = v
            else:
                y = v
    z = y
    puts = True  # z goes to an operand, the first one if nothing else is said
    to = dst
    flags = True  # those of `r` and cv
    r = ZERO
    also = -1  # a second register that is written, of kind `kind`,
    kind = ops.K_REG
    w = ZERO  # and with what
    if op == O_MOV or op == O_MOVZX:
        flags = False
    elif op == O_ADD:
        z, cv = sem.add(x, y, cv, sh)
        r = z
    elif op == O_OR:
        z, cv = sem.or_(x, y, cv, sh)
        r = z
    elif op == O_ADC:
        z, cv = sem.adc(x, y, cv, sh)
        r = z
    elif op == O_SBB:
        z, cv = sem.sbb(x, y, cv, sh)
        r = z
    elif op == O_AND:
        z, cv = sem.and_(x, y, cv, sh)
        r = z
    elif op == O_SUB:
        z, cv = sem.sub(x, y, cv, sh)
        r = z
    elif op == O_XOR:
        z, cv = sem.xor(x, y, cv, sh)
        r = z
    elif op == O_CMP:
        r, cv = sem.sub(x, y, cv, sh)
        puts = False
    elif op == O_TEST:
        r, cv = sem.and_(x, y, cv, sh)
        puts = False
    elif op == O_INC:
        z, cv = sem.inc(x, ONE, cv, sh)
        r = z
    elif op == O_DEC:
        z, cv = sem.dec(x, ONE, cv, sh)
        r = z
    elif op == O_NOT:
        z = ~x & (ALL >> sh)
        flags = False
    elif op == O_NEG:
        z, cv = sem.neg(x, ZERO, cv, sh)
        r = z
    elif op <= O_SHRD:
        n = y
        if op >= O_SHLD:
            n = regs[RCX] if u.cc == ops.K_CL else u.imm
        n = shift_count(n & BYTE, sh)
        if n == ZERO:  # no flag changes, but a 32-bit destination is written
            z = x
            flags = False
        elif op == O_SHL:
            z, cv = sem.shl(x, n, cv, sh)
        elif op == O_SHR:
            z, cv = sem.shr(x, n, cv, sh)
        elif op == O_SAR:
            z, cv = sem.sar(x, n, cv, sh)
        elif op == O_SHLD:
            z, cv = sem.shld(x, y, n, sh)
        elif op == O_SHRD:
            z, cv = sem.shrd(x, y, n, sh)
        else:
            if op == O_ROL:
                z, cv = sem.rol(x, n, cv, sh)
            elif op == O_ROR:
                z, cv = sem.ror(x, n, cv, sh)
            elif op == O_RCL:
                z, cv = sem.rcl(x, n, cv, sh)
            else:
                z, cv = sem.rcr(x, n, cv, sh)
            flags = False
        r = z
    elif op == O_IMUL:
        z, _hi, cv = sem.imul(y, u.imm & (ALL >> sh) if u.cc == ops.K_IMM else x, sh)
        r = z
    elif op == O_MUL or op == O_IMUL1:
        if op == O_MUL:
            z, w, cv = sem.mul(regs[RAX] & (ALL >> sh), x, sh)
        else:
            z, w, cv = sem.imul(regs[RAX] & (ALL >> sh), x, sh)
        r = z
        to = ops.K_REG
        a = RAX
        also = RDX
        if size == ONE:
            z |= w << U8
            size = U2
            also = -1
    elif op == O_DIV or op == O_IDIV:
        high = regs[RDX] & (ALL >> sh) if size != ONE else (regs[RAX] >> U8) & BYTE
        if op == O_DIV:
            ok, z, w = sem.div(high, regs[RAX] & (ALL >> sh), x, sh)
        else:
            ok, z, w = sem.idiv(high, regs[RAX] & (ALL >> sh), x, sh)
        if not ok:
            fault(E, VECTOR_DE, 0, ZERO)
            return CODE_FAULT, fz, fs, cv
        flags = False
        to = ops.K_REG
        a = RAX
        also = RDX
        if size == ONE:
            z |= w << U8
            size = U2
            also = -1
    elif op == O_MOVSX:
        z = sext(y, U64(64) - U64(u.width2))
        flags = False
    elif op == O_LEA:  # no segment base
        z = effective(regs, u)
        if u.addr32 != 0:
            z &= LOW32
        flags = False
    elif op == O_XCHG:
        also = np.int64(u.r)
        kind = src
        w = x
        flags = False
    elif op == O_XADD:
        z, cv = sem.add(x, y, cv, sh)
        r = z
        also = np.int64(u.r)
        kind = src
        w = x
    elif op == O_CMPXCHG:
        r, cv = sem.sub(regs[RAX] & (ALL >> sh), x, cv, sh)
        if r != ZERO:  # memory is written back in either case
            z = x
            puts = dst == ops.K_MEM
            also = RAX
            w = x
    elif op <= O_BTC:
        bit = y & (U64(u.width) - ONE)
        if op == O_BT:
            puts = False
        elif op == O_BTS:
            z = x | ONE << bit
        elif op == O_BTR:
            z = x & ~(ONE << bit)
        else:
            z = x ^ ONE << bit
        cv = cf_of((x >> bit) & ONE, sem.overflow(cv)) | (cv & U8)
        flags = False
    elif op == O_BSF or op == O_BSR:
        flags = False
        puts = y != ZERO  # else ZF is set and the destination keeps its value
        fz = y
        if puts:
            z = bit_scan(1 if op == O_BSR else 0, y)
            fz = ONE
    elif op == O_TZCNT or op == O_LZCNT:
        z = lzcnt(y, sh) if op == O_LZCNT else tzcnt(y, sh)
        fz = z
        cv = cf_of(ONE if y == ZERO else ZERO, ZERO)
        flags = False
    elif op == O_POPCNT:
        z = popcount(y)
        fz = y
        fs = ONE  # SF and PF are cleared
        cv = ZERO
        flags = False
    elif op == O_BSWAP:
        # of 16 bits the manual leaves it undefined; processors write 0
        z = bswap(x, sh) if u.width > 16 else ZERO
        flags = False
    elif op == O_CDQE:
        half = sh + ((U64(64) - sh) >> ONE)
        z = sext(regs[RAX] & (ALL >> half), half)
        flags = False
        to = ops.K_REG
        a = RAX
    elif op == O_CQO:
        z = ~((regs[RAX] << sh) >> U63) + ONE
        flags = False
        to = ops.K_REG
        a = RDX
    elif op == O_SETCC:
        z = U64(condition(np.int64(u.cc), fz, fs, cv))
        flags = False
    elif op == O_CMOVCC:
        if condition(np.int64(u.cc), fz, fs, cv) == 0:
            z = x
        flags = False
    elif op == O_MOVBE:
        z = bswap(y, sh)
        flags = False
    elif op == O_CRC32:
        z = sem.crc32(x & LOW32, y, U64(u.width2) >> U3)
        flags = False
    else:  # ADCX, ADOX
        cf, of = carry(cv), sem.overflow(cv)
        z, v = sem.adc(x, y, cf_of(cf if op == O_ADCX else of, ZERO), sh)
        if op == O_ADCX:
            cf = carry(v)
        else:
            of = carry(v)
        cv = cf_of(cf, of) | (cv & U8)
        flags = False
    code = CODE_NEXT
    if to == ops.K_MEM and puts:
        code = write_here(core, M, E, ring, va, size, z)
        if code >= CODE_NOT_RETIRED:
            return code, fz, fs, before
        if code == CODE_EDGE:
            core.rip = u.rip + U64(u.len)
        puts = False
    if also >= 0:
        _put_part(regs, kind, also, size, w)
    if puts:
        _put_part(regs, to, a, size, z)
    if flags:
        fz = norm(r, sh)
        fs = fz
    return code, fz, fs, cv


@jit(inline=True)
def _stack(core, M, E, u, op, size):
    if op == O_PUSH:
        if u.dst == ops.K_REG and u.a == REG_FS:
            return push(core, M, E, size, core.selectors[4])
        if u.dst == ops.K_REG and u.a == REG_GS:
            return push(core, M, E, size, core.selectors[5])
        code, x = get(core, M, E, u, np.int64(u.dst), np.int64(u.a), size)
        if code != CODE_NEXT:
            return code
        return push(core, M, E, size, x)
    if op == O_POP:
        sp = core.regs[RSP]
        code, x = read(core, M, E, sp, size)
        if code != CODE_NEXT:
            return code
        core.regs[RSP] = sp + size  # an address through rsp uses the new value
        code = put(core, M, E, u, np.int64(u.dst), np.int64(u.a), size, x)
        if code >= CODE_NOT_RETIRED:
            core.regs[RSP] = sp
        return code
    if op == O_LEAVE:
        code, x = read(core, M, E, core.regs[RBP], size)
        if code != CODE_NEXT:
            return code
        core.regs[RSP] = core.regs[RBP] + size
        put_register(core, RBP, size, x)
        return CODE_NEXT
    # ENTER
    sp = core.regs[RSP]
    bp = core.regs[RBP]
    level = np.int64(u.disp & _FRAME_LEVELS)
    code = push(core, M, E, size, bp)
    frame = core.regs[RSP]
    if code >= CODE_NOT_RETIRED:
        return code
    for _k in range(1, level):
        bp = bp - size
        got, x = read(core, M, E, bp, size)
        if got == CODE_NEXT:
            code = max(code, push(core, M, E, size, x))
        else:
            code = CODE_FAULT
        if code >= CODE_NOT_RETIRED:
            core.regs[RSP] = sp
            return code
    if level > 0:
        code = max(code, push(core, M, E, size, frame))
        if code >= CODE_NOT_RETIRED:
            core.regs[RSP] = sp
            return code
    # The manual: a page fault if a write at the final stack pointer would be one.
    E.intent = 1
    got, _x = read(core, M, E, core.regs[RSP] - u.imm, size)
    E.intent = 0
    if got != CODE_NEXT:
        core.regs[RSP] = sp
        return got
    put_register(core, RBP, size, frame)
    core.regs[RSP] -= u.imm
    return code


@jit()
def reaches(E, target):
    """Whether a near branch may go there: a target that is not canonical is its own #GP (SDM 2, JMP)."""
    if (target + _CANONICAL) >> U64(48) != ZERO:
        fault(E, VECTOR_GP, 1, ZERO)
        return False
    return True


@jit(inline=True)
def _jump(core, M, E, u, op):
    regs = core.regs
    here = u.rip + U64(u.len)
    if op >= O_LOOP and op <= O_LOOPNE:
        put_address(core, u, RCX, regs[RCX] - ONE)
        taken = regs[RCX] != ZERO
        if op != O_LOOP:
            taken = taken and (core.fz == ZERO) == (op == O_LOOPE)
        predict(core, u, taken)
        core.rip = u.imm if taken else here
        return CODE_JUMP
    if op == O_JRCXZ:
        taken = (regs[RCX] & LOW32 if u.addr32 != 0 else regs[RCX]) == ZERO
        predict(core, u, taken)
        core.rip = u.imm if taken else here
        return CODE_JUMP
    if op == O_RET:
        code, target = read(core, M, E, regs[RSP], U8)
        if code != CODE_NEXT:
            return code
        if not reaches(E, target):
            return CODE_FAULT
        regs[RSP] += U8 + u.imm
        core.rip = target
        return CODE_JUMP
    code, target = get(core, M, E, u, np.int64(u.dst), np.int64(u.a), U8)
    if code != CODE_NEXT:
        return code
    if not reaches(E, target):
        return CODE_FAULT
    if op == O_CALL:
        code = push(core, M, E, U8, here)
        if code >= CODE_NOT_RETIRED:
            return code
    core.rip = target
    return CODE_EDGE if code == CODE_EDGE else CODE_JUMP


@jit(inline=True)
def _element(core, M, E, u, op, ring):
    """One iteration of a string instruction: CODE_REPEAT if another one follows."""
    regs = core.regs
    size = U64(u.width) >> U3
    sh = U64(64) - U64(u.width)
    kept = LOW32 if u.addr32 != 0 else ALL
    if u.cc != 0 and regs[RCX] & kept == ZERO:
        # No iteration: it retires, but as no load and no store.
        core.total[ring, C_LOAD] -= (u.lanes1 >> LOAD_LANE) & ONE
        core.total[ring, C_STORE] -= (u.lanes1 >> STORE_LANE) & ONE
        return CODE_NEXT
    step = size if core.rflags & X86_EFLAGS_DF == ZERO else ~size + ONE
    code = CODE_NEXT
    again = u.cc != 0 and regs[RCX] & kept != ONE
    if op == O_STOS or op == O_SCAS:
        x = regs[RAX] & (ALL >> sh)
    else:
        code, x = read_here(core, M, E, ring, linear(core.regs, u, regs[RSI]), size)
        if code != CODE_NEXT:
            return code
    if op == O_MOVS or op == O_STOS:
        code = write_here(core, M, E, ring, regs[RDI] & kept, size, x)
        if code >= CODE_NOT_RETIRED:
            return code
    elif op == O_LODS:
        put_register(core, RAX, size, x)
    else:
        code, y = read_here(core, M, E, ring, regs[RDI] & kept, size)
        if code != CODE_NEXT:
            return code
        z, cv = sem.sub(x, y, core.cv, sh)
        set_flags(core, z, cv, sh)
        if (z == ZERO) != (u.cc == 1):
            again = False
    if op == O_MOVS or op == O_LODS or op == O_CMPS:
        put_address(core, u, RSI, regs[RSI] + step)
    if op != O_LODS:
        put_address(core, u, RDI, regs[RDI] + step)
    if u.cc != 0:
        put_address(core, u, RCX, regs[RCX] - ONE)
    if again:
        return CODE_REPEAT
    if u.cc != 0 and code == CODE_NEXT and (op == O_MOVS or op == O_STOS):
        # An iteration before this one may have stored into decoded code: what follows is looked up.
        core.rip = u.rip + U64(u.len)
        return CODE_JUMP
    return code


@jit()
def _in_lines(core, M, u, op, ring, limit):
    """Iterations of REP MOVS, STOS, SCAS or CMPS that stay in lines which L1 holds, and end nothing.

    Each of them would find TLB and L1 as they are: it takes its cost and no more. Modifies memory, flags,
    RSI, RDI, RCX, core.t and core.iterations.
    """
    regs = core.regs
    size = U64(u.width) >> U3
    if regs[RCX] <= U2 or u.cost <= 0 or core.t + u.cost >= limit:
        return
    n = min(regs[RCX] - ONE, U64((limit - core.t - 1) // u.cost))
    to = regs[RDI]
    slot = (to >> U12) & TLB_INDEX
    stores = op == O_MOVS or op == O_STOS
    tag = core.tlb_write[ring, slot] if stores else core.tlb_read[ring, slot]
    if (to + size - ONE) & PAGE_BASE != tag:
        return
    q = to + (core.add_write[ring, slot] if stores else core.add_read[ring, slot])
    line = q >> _U6
    if core.l1[line & L1_INDEX] != np.uint32(line + ONE):
        return
    n = min(n, (LINE - (q & (LINE - ONE))) // size)
    p = q
    if op == O_MOVS or op == O_CMPS:
        of = linear(regs, u, regs[RSI])
        slot = (of >> U12) & TLB_INDEX
        if (of + size - ONE) & PAGE_BASE != core.tlb_read[ring, slot]:
            return
        p = of + core.add_read[ring, slot]
        line = p >> _U6
        if core.l1[line & L1_INDEX] != np.uint32(line + ONE):
            return
        n = min(n, (LINE - (p & (LINE - ONE))) // size)
    if op == O_MOVS:
        if size == U8:
            for k in range(n):
                st64(M, q + (k << U3), ld64(M, p + (k << U3)))
        elif q - p >= size:  # else each byte that is read was written by the element before
            for k in range(n * size):
                M[q + k] = M[p + k]
        else:
            return
    elif op == O_STOS:
        if size == U8:
            for k in range(n):
                st64(M, q + (k << U3), regs[RAX])
        else:
            for k in range(n):
                st(M, q + k * size, size, regs[RAX])
    else:
        sh = U64(64) - U64(u.width)
        done = ZERO
        z = ZERO
        cv = core.cv
        while done < n:
            x = ld(M, p + done * size, size) if op == O_CMPS else regs[RAX] & (ALL >> sh)
            now, v = sem.sub(x, ld(M, q + done * size, size), cv, sh)
            if (now == ZERO) != (u.cc == 1):
                break
            z = now
            cv = v
            done += ONE
        n = done
        if n == ZERO:
            return
        set_flags(core, z, cv, sh)
    if op == O_MOVS or op == O_CMPS:
        regs[RSI] += n * size
    regs[RDI] += n * size
    regs[RCX] -= n
    core.t += np.int64(n) * u.cost
    core.iterations += n


@jit()
def _string(core, M, E, u, op, limit):
    """A string instruction until its last iteration, or to the one with which core.t reaches `limit`."""
    ring = 0 if core.cpl == 0 else 1
    plain = u.cc != 0 and op != O_LODS and u.addr32 == 0 and core.rflags & X86_EFLAGS_DF == ZERO
    while True:
        if plain:
            _in_lines(core, M, u, op, ring, limit)
        code = _element(core, M, E, u, op, ring)
        if code != CODE_REPEAT or core.t + u.cost >= limit:
            return _next(core, u, code)
        core.t += u.cost
        core.iterations += ONE


@jit()
def _cmpxchg_pair(core, M, E, u):
    # CMPXCHG8B and 16B: edx:eax or rdx:rax against memory; only ZF changes.
    regs = core.regs
    va = address(core.regs, u)
    if u.width == 64:  # bits of the operand, of both registers together
        code, x = read(core, M, E, va, U8)
        if code != CODE_NEXT:
            return code
        equal = x == (regs[RAX] & LOW32) | (regs[RDX] << U64(32))
        z = (regs[RBX] & LOW32) | (regs[RCX] << U64(32)) if equal else x
        code = write(core, M, E, va, U8, z)
        if code >= CODE_NOT_RETIRED:
            return code
        if not equal:
            regs[RAX] = x & LOW32
            regs[RDX] = x >> U64(32)
    else:
        if va & U15 != ZERO:
            fault(E, VECTOR_GP, 1, ZERO)
            return CODE_FAULT
        code, x = read(core, M, E, va, U8)
        if code != CODE_NEXT:
            return code
        code, y = read(core, M, E, va + U8, U8)
        if code != CODE_NEXT:
            return code
        equal = x == regs[RAX] and y == regs[RDX]
        code = write(core, M, E, va, U8, regs[RBX] if equal else x)
        if code >= CODE_NOT_RETIRED:
            return code
        code = max(code, write(core, M, E, va + U8, U8, regs[RCX] if equal else y))
        if not equal:
            regs[RAX] = x
            regs[RDX] = y
    core.fz = ZERO if equal else ONE
    return code


@jit(inline=True)
def _vex(core, u, op, x, sh):
    # BMI1 and BMI2: x is the r/m operand, u.cc the register that VEX.vvvv names.
    y = core.regs[u.cc & 15] & (ALL >> sh)
    bits = U64(u.width)
    if op == O_MULX:
        lo, hi, _cv = sem.mul(core.regs[RDX] & (ALL >> sh), x, sh)
        core.regs[u.cc & 15] = lo
        core.regs[u.a] = hi
        return
    if op >= O_PDEP:
        n = shift_count((u.imm if op == O_RORX else y) & BYTE, sh)
        if op == O_PDEP:
            z = sem.deposit(y, x)
        elif op == O_PEXT:
            z = sem.extract(y, x)
        elif op == O_RORX:
            z = ((x >> n) | (x << ((bits - n) & U63))) & (ALL >> sh) if n != ZERO else x
        elif op == O_SARX:
            top = sext(x, sh)
            z = top >> n
            if top >> U63 != ZERO and n != ZERO:
                z |= ~(ALL >> n)
            z &= ALL >> sh
        elif op == O_SHLX:
            z = (x << n) & (ALL >> sh)
        else:
            z = x >> n
        core.regs[u.a] = z
        return
    cf = ZERO
    if op == O_ANDN:
        z = ~y & x
    elif op == O_BEXTR:
        start, length = y & BYTE, (y >> U8) & BYTE
        z = x >> start if start < bits else ZERO
        if length < bits:
            z &= (ONE << length) - ONE
    elif op == O_BZHI:
        n = y & BYTE
        z = x & ((ONE << n) - ONE) if n < bits else x
        cf = ZERO if n < bits else ONE
    elif op == O_BLSI:
        z = x & (~x + ONE)
        cf = ZERO if x == ZERO else ONE
    else:
        cf = ONE if x == ZERO else ZERO
        z = x & (x - ONE) if op == O_BLSR else (x ^ (x - ONE)) & (ALL >> sh)
    core.regs[u.a] = z
    set_flags(core, z, cf_of(cf, ZERO), sh)


@jit(inline=True)
def _later(core, M, E, u, op, size, sh):
    # What came with later processors. These move or compute, and touch memory once at most.
    if op == O_CMPXCHG8B:
        return _cmpxchg_pair(core, M, E, u)
    if op == O_XLAT:
        code, x = read(core, M, E, linear(core.regs, u, core.regs[RBX] + (core.regs[RAX] & BYTE)), ONE)
        if code == CODE_NEXT:
            put_register(core, RAX, ONE, x)
        return code
    code, x = get(core, M, E, u, np.int64(u.src), np.int64(u.r), size)
    if code != CODE_NEXT:
        return code
    _vex(core, u, op, x, sh)
    return CODE_NEXT


@jit(inline=True)
def _flag_ops(core, op):
    of = (core.cv ^ (core.cv << ONE)) >> U63
    if op == O_CLD:
        core.rflags &= ~X86_EFLAGS_DF
    elif op == O_STD:
        core.rflags |= X86_EFLAGS_DF
    elif op == O_CLC:
        core.cv = cf_of(ZERO, of) | (core.cv & U8)
    elif op == O_STC:
        core.cv = cf_of(ONE, of) | (core.cv & U8)
    elif op == O_CMC:
        core.cv = cf_of(carry(core.cv) ^ ONE, of) | (core.cv & U8)
    elif op == O_LAHF:
        flags = (pack_flags(core.fz, core.fs, core.cv) & LAHF_FLAGS) | X86_EFLAGS_FIXED
        core.regs[RAX] = (core.regs[RAX] & ~_HIGH_MASK) | (flags << U8)
    else:
        flags = (core.regs[RAX] >> U8) & LAHF_FLAGS
        core.fz, core.fs, core.cv = unpack_flags(flags | (of << U64(11)))
    return CODE_NEXT


@jit()
def execute_general(core, M, E, u, limit):
    """Execute micro-op u of the COLD group. Returns a CODE_*; core.rip is set for a jump and an edge.

    REP goes on until core.t, with the time of the instruction itself, reaches `limit`; with a limit that is
    past it is one iteration.
    """
    if u.op <= O_COMPUTE:
        ring = 0 if core.cpl == 0 else 1
        code, core.fz, core.fs, core.cv = compute(
            core, M, E, u, ring, core.regs, core.fz, core.fs, core.cv
        )
        return code
    if u.rmw == 0:
        return _execute(core, M, E, u, limit)
    E.intent = 1
    code = _execute(core, M, E, u, limit)
    E.intent = 0
    return code


@jit(inline=True)
def _execute(core, M, E, u, limit):
    op = np.int64(u.op)
    size = U64(u.width) >> U64(3)
    sh = U64(64) - U64(u.width)
    if op >= O_JMP and op <= O_JRCXZ:
        return _jump(core, M, E, u, op)
    if op <= O_LEAVE:
        return _next(core, u, _stack(core, M, E, u, op, size))
    if op <= O_CMPS:
        return _string(core, M, E, u, op, limit)
    if op <= O_SAHF:
        return _flag_ops(core, op)
    if op != O_CLFLUSH:
        return _next(core, u, _later(core, M, E, u, op, size, sh))
    # CLFLUSH: the address is checked as for a read, the line leaves the caches
    if E.emulating != 0:
        return CODE_NEXT  # em_clflush()
    va = address(core.regs, u)
    slot, hits = core.t, E.debug_hits
    code, _x = mem_read(core, M, E, va, ONE)
    core.t = slot
    E.debug_hits = hits  # it moves no data
    if code != CODE_NEXT:
        return code
    ring = 0 if core.cpl == 0 else 1
    page = (va >> U64(12)) & TLB_INDEX
    if core.tlb_read[ring, page] & ~WATCHED == va & PAGE_BASE:  # a page with memory behind it
        cache_flush_line(core, (va + core.add_read[ring, page]) >> _U6)
    return CODE_NEXT

