"""PEBS: the processor itself writes a record of the instruction into a buffer in the program's memory.

The rule (SDM 3B 20.6.2.4): the overflow of a counter whose bit in IA32_PEBS_ENABLE is set arms PEBS, sets
no bit of GLOBAL_STATUS and raises no PMI. The next instruction that counts an event of an armed counter is
recorded when it has retired, after its effects: IP is its own address, the registers are those that it
left. Then the counter starts again from its reset value in the debug store. A record that would end beyond
the absolute maximum, or a debug store or buffer that is not there, skips all of it: no record, no reload,
no fault. A record that brings the index to the threshold sets GLOBAL_STATUS.OvfBuffer and raises a PMI
unless the bit was set already. While PEBS is armed the engine steps one instruction at a time.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.machine import msr_index
from vpmu_emu.machine.alu import address
from vpmu_emu.machine.decode import LOAD_LANE, STORE_LANE, find
from vpmu_emu.machine.lbr import LBR_LEGACY
from vpmu_emu.machine.memory import read, write
from vpmu_emu.machine.msr import read_tsc
from vpmu_emu.machine.ops import K_MEM
from vpmu_emu.machine.pmu import (
    FIXED_SHIFT,
    event_total,
    is_armed,
    pmu_update,
    pmu_write_counter,
    raise_pmi,
    status_index,
)
from vpmu_emu.machine.retire import spend
from vpmu_emu.machine.state import CODE_NEXT, CODE_NOT_RETIRED, N_CTR, N_GP, N_LBR
from vpmu_emu.machine.u64 import BYTE, ONE, U8, U24, U48, U64, ZERO
from vpmu_emu.tables.cpus import LATENCIES

LAT_PEBS = LATENCIES.index("pebs")

# The debug store's management area (64-bit layout, SDM 3B 17.4.9): offsets from IA32_DS_AREA
DS_PEBS_INDEX = U64(0x28)
DS_PEBS_ABSOLUTE_MAXIMUM = U64(0x30)
DS_PEBS_INTERRUPT_THRESHOLD = U64(0x38)
DS_PEBS_RESET = U64(0x40)  # eight general-purpose counters, then the fixed ones

# Groups of an adaptive record, in their order: bits of MSR_PEBS_DATA_CFG, and 64-bit words
BASIC_WORDS = 4
MEMORY_WORDS = 4
GPR_WORDS = 18
XMM_WORDS = 32
LBR_WORDS = 3  # an entry


@jit()
def pebs_counting(core):
    """The counters that are armed for PEBS and count now: bits as in IA32_PEBS_ENABLE, 0 for none."""
    pmu = core.pmu
    mask = ZERO
    if pmu.pebs_armed != ZERO:
        for i in range(N_CTR):
            if is_armed(core, i):
                mask |= ONE << status_index(i)
    return mask & pmu.pebs_armed & pmu.pebs_enable


@jit()
def pebs_begins(core, E, counting):
    """The instruction at core.rip is about to run alone: remember the events of counters `counting`."""
    E.step_pebs = counting
    E.step_address = ZERO
    k = find(E, core.rip)
    if k >= 0:
        u = E.uops[k]
        accesses = (u.lanes1 >> LOAD_LANE | u.lanes1 >> STORE_LANE) & ONE != ZERO
        if accesses and (u.dst == K_MEM or u.src == K_MEM):
            E.step_address = address(core.regs, u)
    for i in range(N_CTR):
        if (counting >> status_index(i)) & ONE != ZERO:
            E.step_event[i] = core.pmu.event[i]
            E.step_rings[i] = core.pmu.rings[i]
            E.step_events[i] = event_total(core, E.step_event[i], E.step_rings[i])


@jit()
def pebs_retired(core, M, E):
    """The instruction that pebs_begins saw has retired: record it if it was an event of theirs."""
    hit = ZERO
    for i in range(N_CTR):
        bit = ONE << status_index(i)
        if (
            E.step_pebs & core.pmu.pebs_armed & bit != ZERO
            and event_total(core, E.step_event[i], E.step_rings[i]) != E.step_events[i]
        ):
            hit |= bit
    if hit == ZERO:
        return
    core.pmu.pebs_armed &= ~hit
    cpl = core.cpl
    core.cpl = 0  # the assist's accesses are the processor's own
    reached = _assist(core, M, E, hit)
    core.cpl = cpl
    E.fault_canonical = 1  # whatever it met is nobody's fault
    spend(core, core.latency[LAT_PEBS])
    if reached and core.pmu.global_status & msr_index.GLOBAL_STATUS_BUFFER_OVF == ZERO:
        core.pmu.global_status |= msr_index.GLOBAL_STATUS_BUFFER_OVF
        raise_pmi(core, E)
        pmu_update(core, E)


@jit()
def _is_adaptive(core, hit):
    pmu = core.pmu
    for i in range(N_CTR):
        if (hit >> status_index(i)) & ONE != ZERO:
            if i < N_GP and pmu.eventsel[i] & msr_index.ICL_EVENTSEL_ADAPTIVE != ZERO:
                return True
            if i >= N_GP and (pmu.fixed_ctr_ctrl >> (FIXED_SHIFT + U64(4 * (i - N_GP)))) & ONE != ZERO:
                return True
    return False


@jit()
def _put(E, n, value):
    # Word n of the record in the making.
    E.pebs[n] = value
    return n + 1


@jit()
def _compose(core, E, hit):
    """Fill E.pebs with the record; how many words it has."""
    cfg = core.pmu.pebs_data_cfg if _is_adaptive(core, hit) else ZERO
    n = _put(E, 0, cfg)
    n = _put(E, n, E.step_rip)
    n = _put(E, n, hit)
    n = _put(E, n, read_tsc(core))
    if cfg & msr_index.PEBS_DATACFG_MEMINFO != ZERO:
        n = _put(E, n, E.step_address)
        for _ in range(MEMORY_WORDS - 1):  # data source, latency, TSX: not modelled
            n = _put(E, n, ZERO)
    if cfg & msr_index.PEBS_DATACFG_GP != ZERO:
        n = _put(E, n, core.rflags)
        n = _put(E, n, core.rip)
        for k in range(16):
            n = _put(E, n, core.regs[k])
    if cfg & msr_index.PEBS_DATACFG_XMMS != ZERO:
        for _ in range(XMM_WORDS):  # this CPU's instruction set has no vectors
            n = _put(E, n, ZERO)
    if cfg & msr_index.PEBS_DATACFG_LBRS != ZERO:
        lbr = core.lbr
        for k in range(min(np.int64((cfg >> U24) & BYTE) + 1, N_LBR)):
            entry = (lbr.tos + N_LBR - k) % N_LBR if lbr.kind == LBR_LEGACY else k
            n = _put(E, n, lbr.source[entry])
            n = _put(E, n, lbr.target[entry])
            n = _put(E, n, lbr.info[entry])
    E.pebs[0] |= U64(8 * n) << U48
    return n


@jit()
def _assist(core, M, E, hit):
    """Write the record and start its counters again; whether the index has reached the threshold."""
    area = core.pmu.ds_area
    code, index = read(core, M, E, area + DS_PEBS_INDEX, U8)
    if code != CODE_NEXT:
        return False
    code, most = read(core, M, E, area + DS_PEBS_ABSOLUTE_MAXIMUM, U8)
    if code != CODE_NEXT:
        return False
    code, threshold = read(core, M, E, area + DS_PEBS_INTERRUPT_THRESHOLD, U8)
    if code != CODE_NEXT:
        return False
    words = _compose(core, E, hit)
    end = index + U64(8 * words)
    if end > most or end < index:
        return False
    for n in range(words):
        if write(core, M, E, index + U64(8 * n), U8, E.pebs[n]) >= CODE_NOT_RETIRED:
            return False
    if write(core, M, E, area + DS_PEBS_INDEX, U8, end) >= CODE_NOT_RETIRED:
        return False
    for i in range(N_CTR):
        if (hit >> status_index(i)) & ONE != ZERO:
            code, again = read(core, M, E, area + DS_PEBS_RESET + U64(8 * i), U8)
            if code == CODE_NEXT:
                pmu_write_counter(core, i, again)
    return end >= threshold
