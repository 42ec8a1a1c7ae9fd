"""How a system instruction ends: it retires and takes time, faults with #GP, or leaves the guest."""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.machine import state
from vpmu_emu.machine.memory import fault
from vpmu_emu.machine.u64 import LOW32, U32, U64, ZERO
from vpmu_emu.machine.vectors import VECTOR_GP
from vpmu_emu.machine.vmx import note_exit

C_CYCLES = state.CLASS["cycles"]
C_INST = state.CLASS["inst"]
LANE_MASK = U64((1 << state.LANE_BITS) - 1)
N_LANES1 = len(state.LANES1)
N_LANES2 = len(state.LANES2)
FIRST_LANE2 = len(state.LANES1)


@jit()
def retire(core, u):
    """Count the instruction of micro-op u in the running totals of the present CPL. Modifies core."""
    row = 0 if core.cpl == 0 else 1
    lanes = u.lanes1
    for k in range(N_LANES1):
        core.total[row, k] += lanes & LANE_MASK
        lanes = lanes >> U64(state.LANE_BITS)
    lanes = u.lanes2
    for k in range(N_LANES2):
        core.total[row, FIRST_LANE2 + k] += lanes & LANE_MASK
        lanes = lanes >> U64(state.LANE_BITS)
    core.total[row, C_CYCLES] += U64(u.cost)
    core.t += np.int64(u.cost)


@jit()
def spend(core, time):
    """Unhalted time of the present CPL. Modifies core."""
    row = 0 if core.cpl == 0 else 1
    core.total[row, C_CYCLES] += U64(time)
    core.t += time


@jit()
def raise_gp(E):
    """Fault with #GP(0)."""
    fault(E, VECTOR_GP, 1, ZERO)
    return state.CODE_FAULT


@jit()
def at_edge(core, u):
    """Done, and what follows is looked at before it runs."""
    core.rip = u.rip + U64(u.len)
    return state.CODE_EDGE


@jit()
def leave_guest(core, u, reason, qualification):
    """The guest exits before micro-op u."""
    core.rip = u.rip
    note_exit(core, reason, qualification, U64(u.len))
    return state.CODE_EXIT


@jit()
def put_edx_eax(core, value):
    """EDX:EAX = value. Modifies core."""
    core.regs[state.RAX] = value & LOW32
    core.regs[state.RDX] = value >> U32
