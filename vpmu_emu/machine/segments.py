"""Segment registers and descriptor tables: what a selector names, and whether it may be loaded.

SDM 3A chapters 3 and 5.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.machine import state
from vpmu_emu.machine.alu import address, put, put_register
from vpmu_emu.machine.decode import note_outside
from vpmu_emu.machine.interrupts import load_cs, outer_stack, read_descriptor
from vpmu_emu.machine.memory import fault, read, write
from vpmu_emu.machine.msr import is_canonical
from vpmu_emu.machine.ops import K_MEM, SYSTEM_OP
from vpmu_emu.machine.processor_flags import X86_CR4_FSGSBASE
from vpmu_emu.machine.retire import at_edge, raise_gp, retire
from vpmu_emu.machine.u64 import ALL, LOW32, ONE, U3, U8, U15, U16, U32, U64, WORD, ZERO
from vpmu_emu.machine.vectors import VECTOR_GP, VECTOR_NP, VECTOR_SS, VECTOR_UD
from vpmu_emu.tables.instructions import EMULATOR

S_FROM_SREG, S_TO_SREG = SYSTEM_OP["mov_from_sreg"], SYSTEM_OP["mov_to_sreg"]
S_LGDT, S_LIDT, S_LTR, S_SGDT, S_SIDT, S_STR, S_SLDT, S_LLDT = (
    SYSTEM_OP[n] for n in ("lgdt", "lidt", "ltr", "sgdt", "sidt", "str", "sldt", "lldt")
)
S_LSS, S_LFS, S_LGS, S_POP_SREG = (SYSTEM_OP[n] for n in ("lss", "lfs", "lgs", "pop_sreg"))
S_LAR, S_LSL, S_VERR, S_VERW = (SYSTEM_OP[n] for n in ("lar", "lsl", "verr", "verw"))
S_RDFSBASE, S_RDGSBASE, S_WRFSBASE, S_WRGSBASE = (
    SYSTEM_OP[n] for n in ("rdfsbase", "rdgsbase", "wrfsbase", "wrgsbase")
)
FAILS = EMULATOR.index("fails")
_TSS_BUSY = U64(1 << 41)
_DESC_SEGMENT = U64(1 << 44)  # S: code or data
_DESC_PRESENT = U64(1 << 47)
_TSS_TYPES = U64(0xD)


@jit()
def _load_segment(core, M, E, n, selector):
    """Load segment register n (not CS), and of FS and GS the base: CODE_NEXT, or the fault is in E."""
    if selector & ~U3 != ZERO:
        code, desc = read_descriptor(core, M, E, selector)
        if code != state.CODE_NEXT:
            return code
        kind = np.int64((desc >> U64(40)) & U15)
        dpl = np.int64((desc >> U64(45)) & U3)
        rpl = np.int64(selector & U3)
        bad = desc & _DESC_SEGMENT == ZERO
        if n == 2:  # data that may be written, of this ring
            bad = bad or kind & 10 != 2 or dpl != core.cpl or rpl != core.cpl
        else:  # data, or code that may be read
            bad = bad or kind & 10 == 8
            if kind & 12 != 12:
                bad = bad or dpl < core.cpl or dpl < rpl
        if bad:
            fault(E, VECTOR_GP, 1, selector & ~U3)
            return state.CODE_FAULT
        if desc & _DESC_PRESENT == ZERO:
            fault(E, VECTOR_SS if n == 2 else VECTOR_NP, 1, selector & ~U3)
            return state.CODE_FAULT
        base = ((desc >> U16) & U64(0xFF_FFFF)) | ((desc >> U32) & U64(0xFF00_0000))
    else:
        if n == 2 and (core.cpl == 3 or np.int64(selector) != core.cpl):
            return raise_gp(E)
        base = ZERO  # as Intel does it; AMD keeps the base
    core.selectors[n] = selector
    if n >= 4:
        core.regs[state.REG_GS + n - 5] = base
    return state.CODE_NEXT


@jit()
def execute_segments(core, M, E, u, op):
    """MOV to and from a segment register."""
    if op == S_FROM_SREG:
        n = np.int64(u.r) & 7
        if n > 5:
            fault(E, VECTOR_UD, 0, ZERO)
            return state.CODE_FAULT
        size = U64(2) if u.dst == K_MEM else U64(u.width) >> U3
        code = put(core, M, E, u, np.int64(u.dst), np.int64(u.a), size, core.selectors[n])
        if code >= state.CODE_NOT_RETIRED:
            return code
        retire(core, u)
        return at_edge(core, u) if code == state.CODE_EDGE else state.CODE_NEXT
    n = np.int64(u.a) & 7
    if n > 5 or n == 1:
        fault(E, VECTOR_UD, 0, ZERO)
        return state.CODE_FAULT
    selector = core.regs[u.r] & WORD
    if u.src == K_MEM:
        code, selector = read(core, M, E, address(core.regs, u), U64(2))
        if code != state.CODE_NEXT:
            return code
    code = _load_segment(core, M, E, n, selector)
    if code != state.CODE_NEXT:
        return code
    retire(core, u)
    if n == 2:
        core.shadow = 2  # MOV SS: the next instruction (MOV RSP) belongs to it
    return at_edge(core, u)


@jit()
def selector_operand(core, M, E, u, kind, n):
    """(code, the selector that an operand is)."""
    if kind == K_MEM:
        return read(core, M, E, address(core.regs, u), U64(2))
    return state.CODE_NEXT, core.regs[n] & WORD


@jit()
def _visible(core, desc, selector, op):
    """SDM 2, LAR LSL VERR VERW: whether this descriptor may be seen from here."""
    kind = np.int64((desc >> U64(40)) & U15)
    dpl = np.int64((desc >> U64(45)) & U3)
    if desc & _DESC_SEGMENT == ZERO:
        # LDT, TSS, call gate; LSL: those that have a limit
        if op == S_VERR or op == S_VERW:
            return False
        if kind != 2 and kind != 9 and kind != 11 and (kind != 12 or op == S_LSL):
            return False
    elif (op == S_VERW and kind & 10 != 2) or (op == S_VERR and kind & 10 == 8):
        return False  # not data that may be written; code that may not be read
    elif kind & 12 == 12:
        return True  # conforming code, from everywhere
    return dpl >= core.cpl and dpl >= np.int64(selector & U3)


@jit()
def execute_descriptor_queries(core, M, E, u, op):
    """LAR, LSL, VERR and VERW."""
    # These tell by ZF and never fault for what the descriptor is.
    only = op == S_VERR or op == S_VERW
    kind = np.int64(u.dst) if only else np.int64(u.src)
    code, selector = selector_operand(core, M, E, u, kind, np.int64(u.a) if only else np.int64(u.r))
    if code != state.CODE_NEXT:
        return code
    offset = selector & U64(0xFFF8)
    seen = False
    desc = ZERO
    if offset != ZERO and selector & U64(4) == ZERO and offset + U64(7) <= core.gdt_limit:
        code, desc = read_descriptor(core, M, E, selector)
        if code != state.CODE_NEXT:
            return code
        seen = _visible(core, desc, selector, op)
    if seen and not only:
        if op == S_LAR:
            value = (desc >> U32) & U64(0x00FF_FF00)
        else:
            value = (desc & WORD) | ((desc >> U32) & U64(0xF_0000))
            if desc & U64(1 << 55) != ZERO:
                value = (value << U64(12)) | U64(0xFFF)
        put_register(core, np.int64(u.a), U64(u.width) >> U3, value)
    core.fz = ZERO if seen else ONE
    retire(core, u)
    return state.CODE_NEXT


@jit()
def execute_far_return(core, M, E, u):
    """RETF to 64-bit code of the same ring or an outer one (SDM 2B, RET)."""
    size = U64(u.width) >> U3
    sp = core.regs[state.RSP]
    cpl = core.cpl
    code, rip = read(core, M, E, sp, size)
    cs = ZERO
    if code == state.CODE_NEXT:
        code, cs = read(core, M, E, sp + size, size)
    if code != state.CODE_NEXT:
        return code
    cs &= WORD
    rpl = np.int64(cs & U3)
    if rpl < cpl or cs & ~U3 == ZERO:
        fault(E, VECTOR_GP, 1, cs & ~U3)
        return state.CODE_FAULT
    code, dpl = load_cs(core, M, E, cs, 1)
    if code != state.CODE_NEXT:
        return code
    if dpl > rpl:
        fault(E, VECTOR_GP, 1, cs & ~U3)
        return state.CODE_FAULT
    if rpl > cpl and E.emulating != 0:
        u.emulator = FAILS  # __load_segment_descriptor(): "Outer-privilege level return is not implemented"
        fault(E, VECTOR_UD, 0, ZERO)
        return state.CODE_FAULT
    drop = u.imm & WORD
    new_sp = sp + size + size + drop
    ss = core.selectors[2]
    if rpl > cpl:
        code, outer_sp = read(core, M, E, new_sp, size)
        if code == state.CODE_NEXT:
            code, ss = read(core, M, E, new_sp + size, size)
        if code != state.CODE_NEXT:
            return code
        ss &= WORD
        code = outer_stack(core, M, E, ss, rpl)
        if code != state.CODE_NEXT:
            return code
        new_sp = outer_sp + drop
    if not is_canonical(rip):
        return raise_gp(E)
    retire(core, u)
    core.rip = rip
    core.regs[state.RSP] = new_sp
    core.selectors[1] = cs
    core.selectors[2] = ss
    core.cpl = rpl
    return state.CODE_EDGE


@jit()
def execute_segment_from_memory(core, M, E, u, op):
    """LSS, LFS, LGS, and POP of a segment register."""
    # LSS, LFS, LGS: the offset of a far pointer goes to a register; POP: a selector from the stack.
    size = U64(u.width) >> U3
    if op == S_POP_SREG:
        sp = core.regs[state.RSP]
        code, selector = read(core, M, E, sp, size)
        if code == state.CODE_NEXT:
            code = _load_segment(core, M, E, np.int64(u.a) - state.REG_FS + 4, selector & WORD)
        if code != state.CODE_NEXT:
            return code
        core.regs[state.RSP] = sp + size
        retire(core, u)
        return state.CODE_NEXT
    va = address(core.regs, u)
    code, offset = read(core, M, E, va, size)
    selector = ZERO
    if code == state.CODE_NEXT:
        code, selector = read(core, M, E, va + size, U64(2))
    if code == state.CODE_NEXT:
        code = _load_segment(core, M, E, 2 if op == S_LSS else 4 if op == S_LFS else 5, selector)
    if code != state.CODE_NEXT:
        return code
    put_register(core, np.int64(u.a), size, offset)
    retire(core, u)
    return at_edge(core, u)


@jit()
def execute_segment_bases(core, E, u, op):
    """RDFSBASE and its kin."""
    if core.cr4 & X86_CR4_FSGSBASE == ZERO:
        fault(E, VECTOR_UD, 0, ZERO)
        return state.CODE_FAULT
    n = state.REG_FS if op == S_RDFSBASE or op == S_WRFSBASE else state.REG_GS
    kept = ALL if u.width == 64 else LOW32
    if op == S_RDFSBASE or op == S_RDGSBASE:
        core.regs[u.a] = core.regs[n] & kept
    else:
        v = core.regs[u.a] & kept
        if not is_canonical(v):
            return raise_gp(E)
        core.regs[n] = v
    retire(core, u)
    return state.CODE_NEXT


@jit()
def execute_tables(core, M, E, u, op):
    """LGDT, LIDT, SGDT and SIDT."""
    va = address(core.regs, u)
    if op == S_LGDT or op == S_LIDT:
        if core.cpl > 0:
            return raise_gp(E)
        code, limit = read(core, M, E, va, U64(2))
        if code != state.CODE_NEXT:
            return code
        code, base = read(core, M, E, va + U64(2), U8)
        if code != state.CODE_NEXT:
            return code
        if not is_canonical(base):
            return raise_gp(E)
        retire(core, u)
        if op == S_LGDT:
            core.gdt_base = base
            core.gdt_limit = limit
        else:
            core.idt_base = base
            core.idt_limit = limit
        return at_edge(core, u)
    limit = core.gdt_limit if op == S_SGDT else core.idt_limit
    base = core.gdt_base if op == S_SGDT else core.idt_base
    code = write(core, M, E, va + U64(2), U8, base)
    if code < state.CODE_NOT_RETIRED:
        code = write(core, M, E, va, U64(2), limit)
    if code >= state.CODE_NOT_RETIRED:
        return code
    retire(core, u)
    return at_edge(core, u)


@jit()
def _no_local_table(core, M, E, u, selector):
    # LLDT: kernels load the null selector; a table of its own is outside of the subset.
    if selector & ~U3 == ZERO:
        retire(core, u)
        core.ldtr = selector
        return at_edge(core, u)
    code, desc = read_descriptor(core, M, E, selector)
    if code != state.CODE_NEXT:
        return code
    if (desc >> U64(40)) & U64(0x1F) != U64(2):
        fault(E, VECTOR_GP, 1, selector & ~U3)
        return state.CODE_FAULT
    note_outside(core, M, E, u.rip)
    fault(E, VECTOR_UD, 0, ZERO)
    return state.CODE_FAULT


@jit()
def execute_task_register(core, M, E, u, op):
    """LTR, STR, LLDT and SLDT."""
    size = U64(2) if u.dst == K_MEM else U64(u.width) >> U3
    if op == S_STR or op == S_SLDT:
        value = core.tr if op == S_STR else core.ldtr
        code = put(core, M, E, u, np.int64(u.dst), np.int64(u.a), size, value)
        if code >= state.CODE_NOT_RETIRED:
            return code
        retire(core, u)
        return at_edge(core, u)
    if core.cpl > 0:
        return raise_gp(E)
    selector = core.regs[u.a] & WORD
    if u.dst == K_MEM:
        code, selector = read(core, M, E, address(core.regs, u), U64(2))
        if code != state.CODE_NEXT:
            return code
    if op == S_LLDT:
        return _no_local_table(core, M, E, u, selector)
    if selector & ~U3 == ZERO:
        return raise_gp(E)
    code, desc = read_descriptor(core, M, E, selector)
    if code != state.CODE_NEXT:
        return code
    offset = selector & U64(0xFFF8)
    if offset + U15 > core.gdt_limit or (desc >> U64(40)) & _TSS_TYPES != U64(9):
        fault(E, VECTOR_GP, 1, offset)
        return state.CODE_FAULT
    code, high = read(core, M, E, core.gdt_base + offset + U8, U8)
    if code != state.CODE_NEXT:
        return code
    if desc & _TSS_BUSY != ZERO:
        fault(E, VECTOR_GP, 1, offset)
        return state.CODE_FAULT
    code = write(core, M, E, core.gdt_base + offset, U8, desc | _TSS_BUSY)
    if code >= state.CODE_NOT_RETIRED:
        return code
    retire(core, u)
    core.tr = selector
    core.tr_limit = (desc & WORD) | ((desc >> U32) & U64(0xF_0000))
    core.tr_base = (
        ((desc >> U16) & U64(0xFF_FFFF)) | ((desc >> U32) & U64(0xFF00_0000)) | (high << U32)
    )
    return at_edge(core, u)
