"""How much a switch of a guest's PMU context does: `config.switch`, and the numbers of what it did.

    eager         every counter is written, as the first version of the series does it
    elide         a counter is looked at first, and written if it is another one, as 7.0 does it
    enabled-only  selectors that are off are not loaded either: what the host leaves there is off, too
    lazy          as elide, from the guest's first access to its PMU on; until then all of it exits
    run-loop      as elide, when somebody else needs the PMU: the context stays in hardware over exits

In every one of them each counter that the guest can read holds the guest's own value, or 0.
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.linux import state
from vpmu_emu.linux.native import note_access, rdmsrl, rdpmcl, wrmsrl
from vpmu_emu.linux.overflow_handler import pmc_bit
from vpmu_emu.linux.percpu import this_core, this_cpu
from vpmu_emu.linux.perf.guest import host_wants_pmu
from vpmu_emu.linux.trace_kinds import TR_VMCS_ACCESS
from vpmu_emu.machine import msr_index
from vpmu_emu.machine.ring import emit
from vpmu_emu.machine.u64 import ONE, U64, ZERO


# --- what is done is counted ----------------------------------------------------------------------------
@jit()
def switch_begins(S, part):
    """A part of a switch, SWITCH_*, begins: accesses from here on are its own."""
    host = this_cpu(S)
    host.switching = part + 1
    host.switch_began = this_core(S).t


@jit()
def switch_ends(S):
    """It is over."""
    host = this_cpu(S)
    part = host.switching - 1
    host.switching = 0
    host.switch_n[part] += ONE
    host.switch_time[part] += this_core(S).t - host.switch_began


@jit()
def note_vmcs_access(S, E, kind, value):
    """VMREAD or VMWRITE, ACCESS_*, of the guest's GLOBAL_CTRL."""
    note_access(S, kind)
    emit(E, this_core(S).t, TR_VMCS_ACCESS, ZERO, ZERO, value, U64(kind))


# --- one register ---------------------------------------------------------------------------------------
@jit(inline=True)
def _rdpmc_of(i):
    if i < state.N_GP_PMC:
        return U64(i)
    return msr_index.INTEL_PMC_FIXED_RDPMC_BASE | U64(i - state.N_GP_PMC)


@jit(inline=True)
def _msr_of(i):
    # Full width, whatever the guest may: a counter is as wide as it is.
    if i < state.N_GP_PMC:
        return msr_index.MSR_IA32_PMC0 + U64(i)
    return msr_index.MSR_CORE_PERF_FIXED_CTR0 + U64(i - state.N_GP_PMC)


@jit()
def load_counter(S, E, i, counter):
    """Hardware's counter of pmc i becomes `counter`; RDPMC is so much faster that it pays to look first."""
    if S.config.switch != state.EAGER and rdpmcl(S, E, _rdpmc_of(i)) == counter:
        return
    wrmsrl(S, E, _msr_of(i), counter)


@jit()
def load_selector(S, E, i, eventsel, passes):
    """Hardware's selector i becomes `eventsel`; one that passes is read by the guest, off or on."""
    off = eventsel & msr_index.ARCH_PERFMON_EVENTSEL_ENABLE == ZERO
    if S.config.switch == state.ENABLED_ONLY and off and not passes:
        return
    wrmsrl(S, E, msr_index.MSR_P6_EVNTSEL0 + U64(i), eventsel)


@jit()
def load_fixed_ctr_ctrl(S, E, value, passes):
    """The same of FIXED_CTR_CTRL, all fields at once."""
    if S.config.switch == state.ENABLED_ONLY and value == ZERO and not passes:
        return
    wrmsrl(S, E, msr_index.MSR_CORE_PERF_FIXED_CTR_CTRL, value)


@jit()
def load_status(S, E, guest):
    """GLOBAL_STATUS becomes the guest's: only bits that differ are cleared or set."""
    status = rdmsrl(S, E, msr_index.MSR_CORE_PERF_GLOBAL_STATUS)
    toggle = guest ^ status
    if status & toggle != ZERO:
        wrmsrl(S, E, msr_index.MSR_CORE_PERF_GLOBAL_OVF_CTRL, status & toggle)
    if guest & toggle != ZERO:
        wrmsrl(S, E, msr_index.MSR_CORE_PERF_GLOBAL_STATUS_SET, guest & toggle)


@jit()
def clear_metrics(S, E):
    """PERF_METRICS becomes 0."""
    metrics = msr_index.INTEL_PMC_FIXED_RDPMC_METRICS
    if S.config.switch != state.EAGER and rdpmcl(S, E, metrics) == ZERO:
        return
    wrmsrl(S, E, msr_index.MSR_PERF_METRICS, ZERO)


@jit()
def was_loaded(S, eventsel, passes):
    """Whether load_selector() has put a selector in that is to be cleared."""
    if eventsel == ZERO:
        return False
    off = eventsel & msr_index.ARCH_PERFMON_EVENTSEL_ENABLE == ZERO
    return not off or passes or S.config.switch != state.ENABLED_ONLY


# --- the run-loop policy: the context is in hardware while KVM handles an exit ----------------------------
@jit()
def stays(S):
    """Whether the context stays in hardware over this exit: the host has no use for the PMU."""
    return S.config.switch == state.RUN_LOOP and not host_wants_pmu(S)


@jit()
def counter_now(S, E, pmu, i):
    """The counter of pmc i, wherever it is."""
    if pmu.guest_ctx_loaded != 0:
        pmu.pmcs[i].counter = rdpmcl(S, E, _rdpmc_of(i))
    return pmu.pmcs[i].counter


@jit()
def set_counter_now(S, E, pmu, i, counter):
    """Set it there."""
    pmu.pmcs[i].counter = counter
    if pmu.guest_ctx_loaded != 0:
        wrmsrl(S, E, _msr_of(i), counter)


@jit()
def set_overflow_now(S, E, pmu, i):
    """The bit of pmc i in GLOBAL_STATUS, wherever that is."""
    if pmu.guest_ctx_loaded != 0:
        wrmsrl(S, E, msr_index.MSR_CORE_PERF_GLOBAL_STATUS_SET, pmc_bit(i))
    else:
        pmu.global_status |= pmc_bit(i)
