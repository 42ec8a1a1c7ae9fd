"""Last branch records: every branch that went elsewhere, its two ends, exact for every horizon.

While branches are recorded the engine steps one instruction at a time; what kind of branch an instruction
was is read off the running totals that it moved, so that the interpreter's loop knows nothing of records.
Legacy records (SDM 3B 17.4, Skylake's format 5) are a ring under MSR_LASTBRANCH_TOS; architectural ones
(SDM 3B chapter 19) shift, entry 0 being the newest. Interrupts and exceptions are far branches from the
interrupted instruction to the handler's first; VM entries and exits are not recorded. A record belongs to
the ring in which it ends. A record's cycles are unhalted ones since the one before.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.machine import msr_index
from vpmu_emu.machine.decode import instruction_at
from vpmu_emu.machine.pmu import C_CYCLES, class_total
from vpmu_emu.machine.state import CLASS, FIRST_BRANCH_CLASS, N_BRANCH_CLASSES, N_LBR
from vpmu_emu.machine.u64 import ONE, U2, U4, U56, U63, U64, ZERO
from vpmu_emu.tables.msrs import MSRS, ROW

LBR_NONE, LBR_LEGACY, LBR_ARCHITECTURAL = range(3)
FORMAT_ARCHITECTURAL = 0x3F  # of IA32_PERF_CAPABILITIES[5:0]

# BR_TYPE of IA32_LBR_x_INFO
BR_COND, BR_NEAR_IND_JMP, BR_NEAR_REL_JMP, BR_NEAR_IND_CALL, BR_NEAR_REL_CALL, BR_NEAR_RET = range(6)
BR_OTHER = 8


def _bits_of_types(register: str, **other: str) -> np.ndarray:
    """The bit that a register has for each BR_TYPE, 0 for none; `other`: what it calls otherwise."""
    bits = {field.name: field.low for field in MSRS[ROW[register]].fields}
    types = next(f.values for f in MSRS[ROW["IA32_LBR_{}_INFO"]].fields if f.name == "type")
    return np.array([bits[other.get(name, name)] if name else 0 for name in types], dtype=np.uint64)


CTL_BIT = _bits_of_types("IA32_LBR_CTL", other="other_branch")  # 1: record it
SELECT_BIT = _bits_of_types("MSR_LBR_SELECT", cond="jcc", other="far_branch")  # 1: leave it out

R_LBR_SELECT = ROW["MSR_LBR_SELECT"]
R_LBR_TOS = ROW["MSR_LASTBRANCH_TOS"]
R_LASTBRANCH_FROM = ROW["MSR_LASTBRANCH_{}_FROM_IP"]
R_LASTBRANCH_TO = ROW["MSR_LASTBRANCH_{}_TO_IP"]
R_LASTBRANCH_INFO = ROW["MSR_LBR_INFO_{}"]
R_LBR_CTL = ROW["IA32_LBR_CTL"]
R_LBR_DEPTH = ROW["IA32_LBR_DEPTH"]
R_LBR_FROM = ROW["IA32_LBR_{}_FROM_IP"]
R_LBR_TO = ROW["IA32_LBR_{}_TO_IP"]
R_LBR_INFO = ROW["IA32_LBR_{}_INFO"]
R_LBR_FIRST, R_LBR_LAST = R_LBR_SELECT, R_LBR_INFO

_FAR, _COND, _TAKEN, _CALL, _RET, _INDIRECT, _MISS = (
    CLASS[name] - FIRST_BRANCH_CLASS
    for name in ("far", "cond", "taken", "call", "ret", "indirect", "brmiss")
)


@jit()
def lbr_on(core):
    """Whether branches are recorded now."""
    lbr = core.lbr
    if lbr.kind == LBR_NONE or core.pmu.global_status & msr_index.GLOBAL_STATUS_LBRS_FROZEN != ZERO:
        return False
    if lbr.kind == LBR_ARCHITECTURAL:
        return lbr.ctl & msr_index.ARCH_LBR_CTL_LBREN != ZERO
    return core.pmu.debugctl & msr_index.DEBUGCTLMSR_LBR != ZERO


@jit()
def _wanted(core, kind):
    ctl = core.lbr.ctl
    if core.lbr.kind == LBR_ARCHITECTURAL:
        ring = U2 if core.cpl == 0 else U4
        return ctl & ring != ZERO and (ctl >> CTL_BIT[kind]) & ONE != ZERO
    ring = ONE if core.cpl == 0 else U2
    return ctl & ring == ZERO and (ctl >> SELECT_BIT[kind]) & ONE == ZERO


@jit()
def _move(lbr, to, origin):
    lbr.source[to] = lbr.source[origin]
    lbr.target[to] = lbr.target[origin]
    lbr.info[to] = lbr.info[origin]


@jit()
def _fill(lbr, k, source, target, info):
    lbr.source[k] = source
    lbr.target[k] = target
    lbr.info[k] = info


@jit()
def _pop(lbr):
    # Call-stack mode: a return takes the record of its call away.
    if lbr.kind == LBR_ARCHITECTURAL:
        for k in range(lbr.depth - 1):
            _move(lbr, k, k + 1)
        _fill(lbr, lbr.depth - 1, ZERO, ZERO, ZERO)
    else:
        _fill(lbr, lbr.tos, ZERO, ZERO, ZERO)
        lbr.tos = (lbr.tos + N_LBR - 1) % N_LBR


@jit()
def lbr_record(core, source, kind, missed, end):
    """A branch of type `kind` (BR_*) went from `source` to core.rip; `missed` is 1 or 0 (uint64).

    `end` is the address behind it: a call of it only asks where it is, and is no frame of a call stack.
    Modifies core.lbr.
    """
    lbr = core.lbr
    if not _wanted(core, kind):
        return
    stack = msr_index.ARCH_LBR_CTL_STACK if lbr.kind == LBR_ARCHITECTURAL else msr_index.LBR_CALL_STACK
    if lbr.ctl & stack != ZERO:
        if kind == BR_NEAR_RET:
            _pop(lbr)
            return
        if (kind != BR_NEAR_REL_CALL and kind != BR_NEAR_IND_CALL) or core.rip == end:
            return
    now = class_total(core, C_CYCLES, 3) >> U4
    info = min(now - lbr.since, msr_index.LBR_INFO_CYCLES) | (missed << U63)
    lbr.since = now
    if lbr.kind == LBR_ARCHITECTURAL:
        for k in range(lbr.depth - 1, 0, -1):
            _move(lbr, k, k - 1)
        info |= (U64(kind) << U56) | msr_index.ARCH_LBR_INFO_CYC_CNT_VALID
    else:
        lbr.tos = (lbr.tos + 1) % N_LBR
    _fill(lbr, lbr.tos, source, core.rip, info)


# --- one instruction at a time ------------------------------------------------------------------------
@jit()
def step_begins(core, M, E):
    """The instruction at core.rip is about to run alone: remember what it will be measured by."""
    E.step_rip = core.rip
    E.step_end = core.rip + U64(E.uops[instruction_at(core, M, E, core.rip)].len)
    for k in range(N_BRANCH_CLASSES):
        E.step_totals[k] = class_total(core, FIRST_BRANCH_CLASS + k, 3)


@jit()
def _grown(core, E, k):
    return class_total(core, FIRST_BRANCH_CLASS + k, 3) - E.step_totals[k]


@jit()
def lbr_retired(core, E):
    """The instruction that step_begins saw has retired: record it if it was a branch that was taken."""
    if _grown(core, E, _TAKEN) == ZERO:
        return
    indirect = _grown(core, E, _INDIRECT) != ZERO
    if _grown(core, E, _FAR) != ZERO:
        kind = BR_OTHER
    elif _grown(core, E, _COND) != ZERO:
        kind = BR_COND
    elif _grown(core, E, _RET) != ZERO:
        kind = BR_NEAR_RET
    elif _grown(core, E, _CALL) != ZERO:
        kind = BR_NEAR_IND_CALL if indirect else BR_NEAR_REL_CALL
    else:
        kind = BR_NEAR_IND_JMP if indirect else BR_NEAR_REL_JMP
    lbr_record(core, E.step_rip, kind, _grown(core, E, _MISS), E.step_end)


# --- registers ----------------------------------------------------------------------------------------
@jit()
def lbr_started(core):
    """Recording begins: cycles count from here. Modifies core.lbr."""
    core.lbr.since = class_total(core, C_CYCLES, 3) >> U4


@jit()
def lbr_reset(core):
    """No records, every entry in use. Modifies core.lbr."""
    for k in range(N_LBR):
        _fill(core.lbr, k, ZERO, ZERO, ZERO)
    core.lbr.ctl = ZERO
    core.lbr.depth = N_LBR
    core.lbr.tos = 0
    core.lbr.since = ZERO


@jit()
def lbr_value(core, row, n):
    """RDMSR of an LBR register: instance n of `row`."""
    lbr = core.lbr
    if row == R_LBR_SELECT or row == R_LBR_CTL:
        return lbr.ctl
    if row == R_LBR_TOS:
        return U64(lbr.tos)
    if row == R_LBR_DEPTH:
        return U64(lbr.depth)
    if row == R_LASTBRANCH_FROM or row == R_LBR_FROM:
        return lbr.source[n]
    if row == R_LASTBRANCH_TO or row == R_LBR_TO:
        return lbr.target[n]
    return lbr.info[n]


@jit()
def lbr_depth_exists(value):
    """Whether IA32_LBR_DEPTH takes this value: CPUID.1CH:EAX[7:0] says 8, 16 and 32."""
    return value == U64(8) or value == U64(16) or value == U64(N_LBR)


@jit()
def lbr_write(core, row, n, value):
    """WRMSR to an LBR register, allowed already. Modifies core.lbr."""
    lbr = core.lbr
    if row == R_LBR_SELECT or row == R_LBR_CTL:
        if row == R_LBR_CTL and value & ~lbr.ctl & msr_index.ARCH_LBR_CTL_LBREN != ZERO:
            lbr_started(core)
        lbr.ctl = value
    elif row == R_LBR_TOS:
        lbr.tos = np.int64(value)
    elif row == R_LBR_DEPTH:
        # SDM 3B 19.1.2.4: any write clears the records; those beyond the depth are no registers
        ctl = lbr.ctl
        since = lbr.since
        lbr_reset(core)
        lbr.ctl = ctl
        lbr.since = since
        lbr.depth = np.int64(value)
        core.msr_n[R_LBR_FROM] = lbr.depth
        core.msr_n[R_LBR_TO] = lbr.depth
        core.msr_n[R_LBR_INFO] = lbr.depth
    elif row == R_LASTBRANCH_FROM or row == R_LBR_FROM:
        lbr.source[n] = value
    elif row == R_LASTBRANCH_TO or row == R_LBR_TO:
        lbr.target[n] = value
    else:
        lbr.info[n] = value
