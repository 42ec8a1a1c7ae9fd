"""Branch records belong to the task whose event has them: reset, saved and restored like a register.

KVM's event for a guest is a call-stack event of user space by its attributes, because only those are
switched with their task. It writes no sample: the guest has the registers themselves. Records are legacy
ones here. arch/x86/events/intel/lbr.c.
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.linux.native import rdmsrl, wrmsrl
from vpmu_emu.linux.percpu import this_cpu
from vpmu_emu.machine import msr_index
from vpmu_emu.machine.state import N_LBR
from vpmu_emu.machine.u64 import U64, ZERO

PERF_SAMPLE_BRANCH_STACK = U64(1 << 11)


@jit()
def intel_pmu_lbr_reset(S, E):
    """No records, nothing left out."""
    for k in range(N_LBR):
        wrmsrl(S, E, msr_index.MSR_LBR_NHM_FROM_0 + U64(k), ZERO)
        wrmsrl(S, E, msr_index.MSR_LBR_NHM_TO_0 + U64(k), ZERO)
        wrmsrl(S, E, msr_index.MSR_LBR_INFO_0 + U64(k), ZERO)
    wrmsrl(S, E, msr_index.MSR_LBR_SELECT, ZERO)


@jit()
def intel_pmu_lbr_add(S, E, i):
    """Event i takes the records. If it is new it finds them empty; sched_task() brings back its own."""
    host = this_cpu(S)
    event = S.perf_events[i]
    S.contexts[event.ctx].lbr_users += 1
    host.lbr_users += 1
    if host.lbr_users == 1 and event.total_time_running == 0:
        intel_pmu_lbr_reset(S, E)


@jit()
def intel_pmu_lbr_del(S, i):
    """Event i gives the records up; they stay as they are."""
    S.contexts[S.perf_events[i].ctx].lbr_users -= 1
    this_cpu(S).lbr_users -= 1


@jit()
def intel_pmu_lbr_sched_task(S, E, ctx, sched_in):
    """The task of context `ctx` comes (1) or leaves (0), and so do its records."""
    kept = S.contexts[ctx]
    if sched_in == 0:
        kept.lbr_valid = 1 if kept.lbr_users > 0 else 0
        if kept.lbr_valid == 0:
            return
        kept.lbr_tos = rdmsrl(S, E, msr_index.MSR_LBR_TOS)
        kept.lbr_sel = rdmsrl(S, E, msr_index.MSR_LBR_SELECT)
        for k in range(N_LBR):
            kept.lbr_from[k] = rdmsrl(S, E, msr_index.MSR_LBR_NHM_FROM_0 + U64(k))
            kept.lbr_to[k] = rdmsrl(S, E, msr_index.MSR_LBR_NHM_TO_0 + U64(k))
            kept.lbr_info[k] = rdmsrl(S, E, msr_index.MSR_LBR_INFO_0 + U64(k))
    elif kept.lbr_valid == 0 or kept.lbr_users == 0:
        intel_pmu_lbr_reset(S, E)
    else:
        kept.lbr_valid = 0
        wrmsrl(S, E, msr_index.MSR_LBR_SELECT, kept.lbr_sel)
        wrmsrl(S, E, msr_index.MSR_LBR_TOS, kept.lbr_tos)
        for k in range(N_LBR):
            wrmsrl(S, E, msr_index.MSR_LBR_NHM_FROM_0 + U64(k), kept.lbr_from[k])
            wrmsrl(S, E, msr_index.MSR_LBR_NHM_TO_0 + U64(k), kept.lbr_to[k])
            wrmsrl(S, E, msr_index.MSR_LBR_INFO_0 + U64(k), kept.lbr_info[k])
