"""Giving the PMU to a guest and taking it back: host events are out meanwhile.

The interface of the first version of the series (patches 02 and 06), and the one that was merged;
`intel_guest_get_msrs()` is what the emulated vPMU uses instead.
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.linux import patches, state
from vpmu_emu.linux.irq_vectors import KVM_VPMU_VECTOR
from vpmu_emu.linux.native import wrmsrl
from vpmu_emu.linux.patches import lacks
from vpmu_emu.linux.percpu import this_core, this_cpu
from vpmu_emu.linux.perf.clocks import pmu_of
from vpmu_emu.linux.perf.pmi import handle_nmis
from vpmu_emu.linux.perf.sched import (
    ALL_CLASSES,
    ctx_sched_in,
    ctx_sched_out,
    event_sched_out,
    next_group,
    perf_event_sched_in,
)
from vpmu_emu.linux.perf.times import perf_event_set_state, perf_event_update_time
from vpmu_emu.linux.perf.x86 import perf_pmu_disable, perf_pmu_enable
from vpmu_emu.machine import msr_index
from vpmu_emu.machine.state import NEVER
from vpmu_emu.machine.u64 import U64, ZERO

_VECTOR = U64(KVM_VPMU_VECTOR)


@jit()
def _force_out(S, E, leader):
    # Version 1 looked at every member, and put the leader into ERROR, twice, for a sibling.
    v1 = S.config.quirks & state.Q_SIBLING_ERROR != ZERO
    sibling_error = False
    for i in range(S.perf_rows):
        event = S.perf_events[i]
        if event.used == 0 or event.leader != leader or event.state != state.PERF_EVENT_STATE_ACTIVE:
            continue
        event_sched_out(S, E, i)
        if event.exclude_guest == 0 and (v1 or pmu_of(event.pmu_type) == state.PMU_CORE):
            event.error_cause = state.ERR_GUEST_ENTER
            event.error_time = this_core(S).t
            if i != leader and v1:
                sibling_error = True
            else:
                perf_event_set_state(S, E, i, state.PERF_EVENT_STATE_ERROR)
    if sibling_error:
        perf_event_set_state(S, E, leader, state.PERF_EVENT_STATE_ERROR)


@jit()
def _no_events(S):
    # Whether neither context has any: perf_ctx_disable() finds no PMU to stop.
    for which in range(2):
        ctx = S.this_cpu if which == 0 else this_cpu(S).task_ctx
        if ctx >= 0 and (next_group(S, ctx, 1, -1) >= 0 or next_group(S, ctx, 0, -1) >= 0):
            return False
    return True


@jit()
def host_wants_pmu(S):
    """Whether an event of the host waits for a counter of this core, or has one."""
    if S.perf_rows == 0:
        return False
    task_ctx = this_cpu(S).task_ctx
    for i in range(S.perf_rows):
        event = S.perf_events[i]
        here = event.ctx == S.this_cpu or (task_ctx >= 0 and event.ctx == task_ctx)
        wants = event.used != 0 and event.state >= state.PERF_EVENT_STATE_INACTIVE
        if here and wants and event.pmu_ctx == state.PMU_CORE:
            return True
    return False


@jit(inline=True)
def _goes_away(S):
    this_cpu(S).pmu_away_since = this_core(S).t


@jit(inline=True)
def _is_back(S):
    host = this_cpu(S)
    host.pmu_away += this_core(S).t - host.pmu_away_since
    host.pmu_away_since = NEVER


@jit()
def perf_guest_enter(S, E):
    """Stop all events of the PMU; those that do not exclude the guest go to ERROR for good."""
    host = this_cpu(S)
    if host.force_exclude_guest != 0 or lacks(S, patches.GUEST_ENTER):
        return
    for which in range(2):
        ctx = S.this_cpu if which == 0 else host.task_ctx
        if ctx < 0:
            continue
        if next_group(S, ctx, 1, -1) < 0 and next_group(S, ctx, 0, -1) < 0:
            continue
        perf_pmu_disable(S, E)
        handle_nmis(S, E)  # an overflow up to here is the host's
        for pinned in range(1, -1, -1):
            i = next_group(S, ctx, pinned, -1)
            while i >= 0:
                if S.perf_events[i].pmu_ctx == state.PMU_CORE:  # only it has PERF_PMU_CAP_VPMU_PASSTHROUGH
                    _force_out(S, E, i)
                i = next_group(S, ctx, pinned, S.perf_events[i].order)
        S.contexts[ctx].rotate_necessary = 0
        perf_pmu_enable(S, E)
    host.force_exclude_guest = 1
    _goes_away(S)


@jit()
def perf_guest_exit(S, E):
    """Schedule the host's events again, pinned ones first."""
    host = this_cpu(S)
    if host.force_exclude_guest == 0:
        return
    host.force_exclude_guest = 0
    _is_back(S)
    if _no_events(S):
        return
    perf_pmu_disable(S, E)
    if S.config.quirks & state.Q_EXIT_ORDER != ZERO:
        for which in range(2):
            ctx = S.this_cpu if which == 0 else host.task_ctx
            ctx_sched_in(S, E, ctx, 1)
            ctx_sched_in(S, E, ctx, 0)
    else:
        perf_event_sched_in(S, E, ALL_CLASSES)
    perf_pmu_enable(S, E)


@jit()
def guest_pmi_vector(S):
    """What LVTPC has for a guest's PMIs: the vector of their own, or, as the series might have, NMI."""
    if S.config.pmi_vector == state.PMI_VECTOR_NMI:
        return msr_index.APIC_DM_NMI
    return _VECTOR


@jit()
def perf_guest_switch_to_kvm_pmi_vector(S, E, masked):
    """Local PMIs get the vector of their own; `masked` is the guest's LVTPC mask bit (U64)."""
    vector = msr_index.APIC_DM_NMI if lacks(S, patches.LVTPC) else guest_pmi_vector(S)
    wrmsrl(S, E, msr_index.IA32_X2APIC_LVT_PMI, vector | (masked & msr_index.APIC_LVT_MASKED))


@jit()
def perf_guest_switch_to_host_pmi_vector(S, E):
    """Local PMIs are NMIs of the host again."""
    wrmsrl(S, E, msr_index.IA32_X2APIC_LVT_PMI, msr_index.APIC_DM_NMI)


@jit()
def _guest_times(S):
    # update_context_time() of both contexts for the events that have the guest's clock.
    task_ctx = this_cpu(S).task_ctx
    for i in range(S.perf_rows):
        event = S.perf_events[i]
        here = event.ctx == S.this_cpu or (task_ctx >= 0 and event.ctx == task_ctx)
        if event.used != 0 and event.exclude_guest != 0 and here:
            perf_event_update_time(S, i)


@jit()
def perf_load_guest_context(S, E):
    """The PMU's events are scheduled out (EVENT_GUEST), whatever they are; others go on."""
    host = this_cpu(S)
    _guest_times(S)
    host.guest_ctx_loaded = 1
    _goes_away(S)
    if _no_events(S):
        return
    perf_pmu_disable(S, E)
    handle_nmis(S, E)  # an overflow up to here is the host's
    for which in range(2):
        ctx = S.this_cpu if which == 0 else host.task_ctx
        ctx_sched_out(S, E, ctx, 1, 0)
        ctx_sched_out(S, E, ctx, 0, 0)
    perf_pmu_enable(S, E)


@jit()
def perf_put_guest_context(S, E):
    """They are scheduled in again, pinned ones first, and the guest's clock stops."""
    host = this_cpu(S)
    _guest_times(S)
    host.guest_ctx_loaded = 0
    _is_back(S)
    if _no_events(S):
        return
    perf_pmu_disable(S, E)
    perf_event_sched_in(S, E, ALL_CLASSES)
    perf_pmu_enable(S, E)


@jit()
def perf_load_guest_lvtpc(S, E, guest_lvtpc):
    """PMIs are a guest's from now on, with a vector of their own; masked if its LVTPC is."""
    masked = guest_lvtpc & msr_index.APIC_LVT_MASKED
    wrmsrl(S, E, msr_index.IA32_X2APIC_LVT_PMI, guest_pmi_vector(S) | masked)
    this_cpu(S).guest_lvtpc_loaded = 1


@jit()
def perf_put_guest_lvtpc(S, E):
    """PMIs are NMIs of the host again."""
    this_cpu(S).guest_lvtpc_loaded = 0
    wrmsrl(S, E, msr_index.IA32_X2APIC_LVT_PMI, msr_index.APIC_DM_NMI)
