"""A CPU that locks up hard spins with interrupts off for ever: only NMIs reach it, and only they end it.

drivers/misc/lkdtm: HARDLOCKUP is a loop of cpu_relax(). Its turns are not run one by one: as many as can
surely pass without an overflow retire at once.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.linux.native import cost
from vpmu_emu.linux.percpu import this_core, this_cpu
from vpmu_emu.linux.perf.pmi import handle_nmis
from vpmu_emu.linux.state import N_TASKS, TASK_DEAD, TASK_INTERRUPTIBLE
from vpmu_emu.linux.watchdog import lockup_will_be_seen
from vpmu_emu.machine.lapic import lapic_pending
from vpmu_emu.machine.pmu import (
    EV_CLASS,
    EV_SCALE,
    EV_SIGN,
    N_TERMS,
    SCALE_PLAIN,
    SCALE_SLOTS,
    counter_mask,
    counter_value,
    is_armed,
    pmu_charge,
)
from vpmu_emu.machine.state import CLASS, N_CTR, NEVER, STOP_HALTED, STOP_HARD_LOCKUP
from vpmu_emu.machine.u64 import ONE, U64, ZERO
from vpmu_emu.tables.cpus import LATENCIES, PARTS

COST_TURN = cost("lkdtm_HARDLOCKUP")
LAT_SLOT = LATENCIES.index("slot")
C_INST = CLASS["inst"]
C_BRANCH = CLASS["branch"]
PART_TASKS = PARTS.index("tasks")
MOST_TURNS = U64(1 << 32)


@jit()
def _turns_to_overflow(core, cycles, insns, branches):
    """Turns of the loop in which surely no counter overflows, at least 1; the counts are those of one."""
    pmu = core.pmu
    if pmu.stepping != 0:
        return ONE
    turns = MOST_TURNS
    for i in range(N_CTR):
        if not is_armed(core, i) or pmu.rings[i] & 1 == 0:
            continue
        event = pmu.event[i]
        grows = ZERO
        if EV_SCALE[event] == SCALE_SLOTS:
            grows = U64(cycles * 16 // core.latency[LAT_SLOT])
        elif EV_SCALE[event] != SCALE_PLAIN:
            grows = U64(cycles)  # no other clock is faster
        else:
            for k in range(N_TERMS):
                part = ZERO
                if EV_CLASS[event, k] == C_INST:
                    part = insns
                elif EV_CLASS[event, k] == C_BRANCH:
                    part = branches
                if EV_SIGN[event, k] > 0:
                    grows += part
                else:
                    grows -= part
        if grows != ZERO:
            turns = min(turns, (counter_mask(core, i) - counter_value(core, i)) // grows)
    return max(turns, ONE)


@jit()
def nothing_can_happen(S):
    """Whether the run is over although timers go on: every task sleeps for good or its CPU is locked up.

    core.stop of this CPU says then why. A lockup that a detector will find is something to wait for.
    """
    locked = -1
    for cpu in range(S.config.n_cores):
        host = S.percpu[cpu]
        core = S.cores[cpu]
        if host.lockup != 0:
            if lockup_will_be_seen(S, cpu):
                return False
            locked = cpu
        elif lapic_pending(core.lapic) >= 0 or core.nmi_pending != 0 or host.call != 0:
            return False
        elif core.pmu.pmi_at != NEVER:
            return False
    for k in range(N_TASKS):
        task = S.tasks[k]
        if task.used == 0 or S.percpu[task.cpu].lockup != 0:
            continue
        sleeps = task.state == TASK_INTERRUPTIBLE and task.wake_at == NEVER
        if task.state != TASK_DEAD and not sleeps:
            return False
    core = this_core(S)
    core.stop = STOP_HALTED
    if locked >= 0:
        core.stop = STOP_HARD_LOCKUP
        core.stop_info = U64(locked)
    return True


@jit()
def lockup_spin(S, E, until):
    """Spin on this CPU up to the time `until` (int64), or its first turn after that; NMIs are taken.

    core.stop is set when a detector finds the lockup. Modifies core, percpu.
    """
    core = this_core(S)
    host = this_cpu(S)
    cycles = S.config.costs[COST_TURN, 0]
    insns = U64(S.config.costs[COST_TURN, 1])
    branches = U64(S.config.costs[COST_TURN, 2])
    turn = cycles * 16
    if host.lockup_at == 0:
        host.lockup_at = core.t
    while core.t < until and core.stop == 0:
        turns = _turns_to_overflow(core, cycles, insns, branches)
        left = (min(until, min(core.nmi_at, core.pmu.pmi_at)) - core.t + turn - 1) // turn
        turns = max(min(turns, U64(max(left, 1))), ONE)
        host.work[COST_TURN] += turns
        host.spent[PART_TASKS] += cycles * np.int64(turns)
        pmu_charge(core, E, cycles * np.int64(turns), insns * turns, branches * turns)
        handle_nmis(S, E)
