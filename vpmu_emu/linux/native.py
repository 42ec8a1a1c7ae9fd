"""The host kernel's own instructions: each piece of its work retires through the hardware PMU.

A cost row is (cycles, instructions, branches). A write takes effect after the work that leads to it has
retired, a read is taken before, so that a counter never counts the very instruction that reads it.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.linux.percpu import this_core, this_cpu
from vpmu_emu.linux.state import ACCESS_RDMSR, ACCESS_RDPMC, ACCESS_WRMSR
from vpmu_emu.machine.msr import host_rdmsr, host_rdpmc, host_wrmsr
from vpmu_emu.machine.pmu import pmu_charge
from vpmu_emu.machine.u64 import ONE, U64
from vpmu_emu.tables.cpus import COST_NAMES, CPU_NAMES, PARTS, cpu


def cost(name: str) -> int:
    """Row of a piece of work in `config.costs`."""
    return COST_NAMES.index(name)


COST_WRMSR = cost("wrmsr")
COST_RDMSR = cost("rdmsr")
COST_RDPMC = cost("rdpmc")


COST_PART = np.array(
    [PARTS.index(c.part) if c.part else -1 for c in cpu(CPU_NAMES[0]).costs], dtype=np.int64
)


@jit()
def retire_work(S, E, row):
    """Retire one row of work without looking for NMIs: the caller is in NMI context or ends in charge()."""
    costs = S.config.costs
    host = this_cpu(S)
    if COST_PART[row] >= 0:
        host.part = COST_PART[row]
        host.row = row
    host.work[row] += ONE
    host.spent[host.part] += costs[row, 0]
    pmu_charge(this_core(S), E, costs[row, 0], U64(costs[row, 1]), U64(costs[row, 2]))


@jit()
def note_access(S, kind):
    """An access, ACCESS_*, belongs to the part of a PMU context switch that is at hand, if one is."""
    host = this_cpu(S)
    if host.switching != 0:
        host.switch_ops[host.switching - 1, kind] += ONE


@jit()
def wrmsrl(S, E, index, value):
    """WRMSR by the host."""
    retire_work(S, E, COST_WRMSR)
    note_access(S, ACCESS_WRMSR)
    host_wrmsr(this_core(S), E, index, value)


@jit()
def rdmsrl(S, E, index):
    """RDMSR by the host."""
    value = host_rdmsr(this_core(S), E, index)
    retire_work(S, E, COST_RDMSR)
    note_access(S, ACCESS_RDMSR)
    return value


@jit()
def rdpmcl(S, E, counter):
    """RDPMC by the host; `counter` is ECX."""
    value = host_rdpmc(this_core(S), E, counter)
    retire_work(S, E, COST_RDPMC)
    note_access(S, ACCESS_RDPMC)
    return value
