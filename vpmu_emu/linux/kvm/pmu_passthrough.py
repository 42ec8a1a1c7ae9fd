"""The passthrough vPMU: the guest's PMU context is in the hardware whenever the inner run loop runs.

Counters and GLOBAL_* are the guest's own; selectors exit, so that the event filter holds: what hardware
gets is `eventsel_hw` and `fixed_ctr_ctrl_hw`. The first version of the series, its known bugs fixed;
each of them is a quirk. Patches 12, 23, 24, 27, 28, 30, 31, 35, 37, 38, 39.
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.linux import state
from vpmu_emu.linux.charge import charge
from vpmu_emu.linux.kvm import pmu as kvm_pmu
from vpmu_emu.linux.kvm.filter import check_pmu_event_filter
from vpmu_emu.linux.kvm.pmu import kvm_pmu_recalc_pmc_emulation, pmc_wants_pmi
from vpmu_emu.linux.native import cost, rdmsrl, rdpmcl, retire_work, wrmsrl
from vpmu_emu.linux.overflow_handler import kvm_make_request, pmc_bit
from vpmu_emu.linux.percpu import this_core
from vpmu_emu.linux.perf.guest import (
    perf_guest_enter,
    perf_guest_exit,
    perf_guest_switch_to_host_pmi_vector,
    perf_guest_switch_to_kvm_pmi_vector,
)
from vpmu_emu.linux.perf.pmi import handle_nmis
from vpmu_emu.linux.trace_kinds import TR_PMU_LOAD, TR_PMU_PUT, TR_SELECTOR_HW
from vpmu_emu.machine import msr_index
from vpmu_emu.machine.lapic import LVT_PMI
from vpmu_emu.machine.mutants import I_KEEP_SELECTORS, I_OFF_CLEARS
from vpmu_emu.machine.physical import ld64, st64
from vpmu_emu.machine.pmu import counter_value, counts_nothing
from vpmu_emu.machine.pmu_rules import perfctr_value, sets_status, status_after_reset
from vpmu_emu.machine.ring import GP_READ_ONLY, GP_RESERVED, emit
from vpmu_emu.machine.u64 import ONE, U8, U15, U64, ZERO
from vpmu_emu.machine.vmcs import V_GUEST_GLOBAL_CTRL, vmread, vmwrite

COST_VMREAD = cost("vmread")
COST_VMWRITE = cost("vmwrite")
COST_LOAD = cost("kvm_mediated_pmu_load")
COST_PUT = cost("kvm_mediated_pmu_put")
COST_GUEST_ENTER = cost("perf_guest_enter")
COST_GUEST_EXIT = cost("perf_guest_exit")
COST_HANDLE_EVENT = cost("kvm_pmu_handle_event")

ENTRY_LOAD_LIST = 0x800
_KIND = ~15


@jit()
def intel_restore_pmu_context(S, E, vcpu):
    """Guest values into the hardware; GLOBAL_CTRL itself follows at VM entry (patch 23)."""
    core = this_core(S)
    pmu = vcpu.pmu
    without = S.config.without
    wrmsrl(S, E, msr_index.MSR_CORE_PERF_GLOBAL_CTRL, ZERO)
    status = rdmsrl(S, E, msr_index.MSR_CORE_PERF_GLOBAL_STATUS)
    if status != ZERO:
        wrmsrl(S, E, msr_index.MSR_CORE_PERF_GLOBAL_OVF_CTRL, status)
    # GLOBAL_STATUS_SET came with version 4; on an older CPU the guest's status does not survive an exit.
    if without & state.W_STATUS_SET == ZERO and core.pmu.version >= 4:
        wrmsrl(S, E, msr_index.MSR_CORE_PERF_GLOBAL_STATUS_SET, pmu.global_status)
    for i in range(pmu.nr_arch_gp_counters):
        wrmsrl(S, E, msr_index.MSR_IA32_PMC0 + U64(i), pmu.pmcs[i].counter)
        wrmsrl(S, E, msr_index.MSR_P6_EVNTSEL0 + U64(i), pmu.pmcs[i].eventsel_hw)
    if without & state.W_ZERO_UNEXPOSED == ZERO:
        # RDPMC is passed through and would show them (patch 24).
        for i in range(pmu.nr_arch_gp_counters, core.pmu.gp):
            wrmsrl(S, E, msr_index.MSR_IA32_PMC0 + U64(i), ZERO)
            wrmsrl(S, E, msr_index.MSR_P6_EVNTSEL0 + U64(i), ZERO)
    wrmsrl(S, E, msr_index.MSR_CORE_PERF_FIXED_CTR_CTRL, pmu.fixed_ctr_ctrl_hw)
    for i in range(pmu.nr_arch_fixed_counters):
        wrmsrl(S, E, msr_index.MSR_CORE_PERF_FIXED_CTR0 + U64(i), pmu.pmcs[state.N_GP_PMC + i].counter)
    if without & state.W_ZERO_UNEXPOSED == ZERO:
        for i in range(pmu.nr_arch_fixed_counters, core.pmu.fixed):
            wrmsrl(S, E, msr_index.MSR_CORE_PERF_FIXED_CTR0 + U64(i), ZERO)
    if (
        core.pmu.perf_capabilities & msr_index.PERF_CAP_PERF_METRICS != ZERO
        and without & state.W_PERF_METRICS == ZERO
    ):
        wrmsrl(S, E, msr_index.MSR_PERF_METRICS, ZERO)


@jit()
def intel_save_pmu_context(S, E, vcpu):
    """Hardware values back into the vCPU, the hardware cleared so that nothing leaks (patch 23).

    Reads by RDPMC, which is faster than RDMSR. GLOBAL_CTRL is off since the VM exit.
    """
    core = this_core(S)
    pmu = vcpu.pmu
    keep = core.inject & I_KEEP_SELECTORS != ZERO
    pmu.global_status = rdmsrl(S, E, msr_index.MSR_CORE_PERF_GLOBAL_STATUS)
    if pmu.global_status != ZERO:
        wrmsrl(S, E, msr_index.MSR_CORE_PERF_GLOBAL_OVF_CTRL, pmu.global_status)
    if S.config.without & state.W_GLOBAL_CTRL_SWITCH != ZERO:
        pmu.loaded_insns += core.stats.host_insns - pmu.mark_insns
        pmu.loaded_branches += core.stats.host_branches - pmu.mark_branches
    for i in range(pmu.nr_arch_gp_counters):
        pmc = pmu.pmcs[i]
        pmc.counter = rdpmcl(S, E, U64(i))
        if S.config.all_passthrough != 0:
            pmc.eventsel = rdmsrl(S, E, msr_index.MSR_P6_EVNTSEL0 + U64(i))
            pmc.eventsel_hw = pmc.eventsel
            kvm_pmu_recalc_pmc_emulation(pmu, i)
        if pmc.eventsel_hw != ZERO and not keep:
            wrmsrl(S, E, msr_index.MSR_P6_EVNTSEL0 + U64(i), ZERO)
        if pmc.counter != ZERO:
            wrmsrl(S, E, msr_index.MSR_IA32_PMC0 + U64(i), ZERO)
    if S.config.all_passthrough != 0:
        pmu.fixed_ctr_ctrl = rdmsrl(S, E, msr_index.MSR_CORE_PERF_FIXED_CTR_CTRL)
        pmu.fixed_ctr_ctrl_hw = pmu.fixed_ctr_ctrl
        for i in range(state.N_GP_PMC, state.N_GP_PMC + pmu.nr_arch_fixed_counters):
            kvm_pmu_recalc_pmc_emulation(pmu, i)
    if pmu.fixed_ctr_ctrl_hw != ZERO:
        wrmsrl(S, E, msr_index.MSR_CORE_PERF_FIXED_CTR_CTRL, ZERO)
    for i in range(pmu.nr_arch_fixed_counters):
        pmc = pmu.pmcs[state.N_GP_PMC + i]
        pmc.counter = rdpmcl(S, E, msr_index.INTEL_PMC_FIXED_RDPMC_BASE | U64(i))
        if pmc.counter != ZERO:
            wrmsrl(S, E, msr_index.MSR_CORE_PERF_FIXED_CTR0 + U64(i), ZERO)


@jit()
def note_put(S, vcpu):
    """Keep what the hardware PMU holds now, for reports: nothing of the guest may be left in it."""
    core = this_core(S)
    pmu = vcpu.pmu
    left = core.pmu.fixed_ctr_ctrl | core.pmu.global_ctrl | core.pmu.global_status
    for i in range(state.N_GP_PMC):
        pmu.put_eventsel[i] = core.pmu.eventsel[i]
        left |= core.pmu.eventsel[i]
    for i in range(state.N_PMC):
        pmu.put_counters[i] = counter_value(core, i)
        left |= pmu.put_counters[i]
    pmu.put_fixed_ctr_ctrl = core.pmu.fixed_ctr_ctrl
    pmu.put_global_ctrl = core.pmu.global_ctrl
    pmu.put_global_status = core.pmu.global_status
    if left != ZERO:
        pmu.dirty_puts += ONE


@jit()
def kvm_pmu_restore_pmu_context(S, E, vcpu):
    """Before the inner run loop, interrupts off: the host's events out, the guest's context in."""
    core = this_core(S)
    pmu = vcpu.pmu
    emit(E, core.t, TR_PMU_LOAD, ZERO, pmu.global_ctrl, pmu.global_status, ZERO)
    if S.config.without & state.W_PERF_GUEST_ENTER == ZERO:
        retire_work(S, E, COST_GUEST_ENTER)
        perf_guest_enter(S, E)
    masked = core.vapic.lvt[LVT_PMI] & msr_index.APIC_LVT_MASKED
    if S.config.without & state.W_LVTPC_MASK != ZERO:
        masked = ZERO
    perf_guest_switch_to_kvm_pmi_vector(S, E, masked)
    retire_work(S, E, COST_LOAD)
    intel_restore_pmu_context(S, E, vcpu)
    pmu.guest_ctx_loaded = 1
    pmu.loads += ONE
    if S.config.without & state.W_GLOBAL_CTRL_SWITCH != ZERO:
        wrmsrl(S, E, msr_index.MSR_CORE_PERF_GLOBAL_CTRL, pmu.global_ctrl)
    pmu.mark_insns = core.stats.host_insns
    pmu.mark_branches = core.stats.host_branches
    handle_nmis(S, E)


@jit()
def kvm_pmu_save_pmu_context(S, E, vcpu):
    """After the inner run loop, interrupts still off: the guest's context out, the host's events in."""
    core = this_core(S)
    pmu = vcpu.pmu
    if S.config.without & state.W_GLOBAL_CTRL_SWITCH != ZERO:
        pmu.global_ctrl = rdmsrl(S, E, msr_index.MSR_CORE_PERF_GLOBAL_CTRL)
    intel_save_pmu_context(S, E, vcpu)
    retire_work(S, E, COST_PUT)
    pmu.guest_ctx_loaded = 0
    pmu.puts += ONE
    note_put(S, vcpu)
    perf_guest_switch_to_host_pmi_vector(S, E)
    emit(E, core.t, TR_PMU_PUT, ZERO, pmu.global_ctrl, pmu.global_status, ZERO)
    if S.config.without & state.W_PERF_GUEST_ENTER == ZERO:
        retire_work(S, E, COST_GUEST_EXIT)
        perf_guest_exit(S, E)
    handle_nmis(S, E)


@jit()
def _refresh_selector(S, E, vcpu, i):
    # Patches 35 and 37: a filtered event leaves nothing in the hardware.
    pmu = vcpu.pmu
    pmc = pmu.pmcs[i]
    allowed = check_pmu_event_filter(S, E, vcpu, i)
    if i < state.N_GP_PMC:
        pmc.eventsel_hw = pmc.eventsel if allowed else ZERO
        emit(E, this_core(S).t, TR_SELECTOR_HW, ZERO, U64(i), pmc.eventsel_hw, pmc.eventsel)
    else:
        shift = U64(4 * (i - state.N_GP_PMC))
        pmu.fixed_ctr_ctrl_hw &= ~(U15 << shift)
        if allowed:
            pmu.fixed_ctr_ctrl_hw |= pmu.fixed_ctr_ctrl & (U15 << shift)
        else:
            pmc.counter = ZERO
        given = (pmu.fixed_ctr_ctrl_hw >> shift) & U15
        asked = (pmu.fixed_ctr_ctrl >> shift) & U15
        emit(E, this_core(S).t, TR_SELECTOR_HW, ZERO, U64(i), given, asked)
    kvm_pmu_recalc_pmc_emulation(pmu, i)


@jit()
def kvm_passthrough_pmu_handle_event(S, E, vcpu):
    """KVM_REQ_PMU: add the software counts, apply a new filter (patch 39)."""
    pmu = vcpu.pmu
    charge(S, E, COST_HANDLE_EVENT)
    incremented = pmu.incremented_pmc_idx
    refresh = pmu.reprogram_pmi & pmu.all_valid_pmc
    pmu.incremented_pmc_idx = ZERO
    pmu.reprogram_pmi = ZERO
    for i in range(state.N_PMC):
        bit = pmc_bit(i)
        pmc = pmu.pmcs[i]
        if refresh & bit != ZERO and S.config.quirks & state.Q_FILTER_UPDATE == ZERO:
            _refresh_selector(S, E, vcpu, i)
        if incremented & bit == ZERO:
            continue
        before = pmc.counter
        pmc.counter = (pmc.counter + pmc.emulated_counter) & pmu.counter_bitmask
        pmc.emulated_counter = ZERO
        if pmc.counter < before:
            if sets_status(this_core(S), i):
                pmu.global_status |= bit
            # Version 1 looked at the selector's INT bit, which a fixed counter does not have.
            blind = i >= state.N_GP_PMC and S.config.quirks & state.Q_FIXED_NO_PMI != ZERO
            if pmc_wants_pmi(S, vcpu, i) and not blind:
                kvm_make_request(S, E, vcpu, state.KVM_REQ_PMI)


@jit()
def kvm_pmu_set_msr(S, E, vcpu, which, data, host_initiated):
    """Write a PMU register of the guest while its context is out; not 0 means #GP: GP_*."""
    pmu = vcpu.pmu
    kind = which & _KIND
    i = which & 15
    if kind == kvm_pmu.PMU_EVNTSEL:
        if data & pmu.eventsel_rsvd != ZERO:
            return GP_RESERVED
        if (
            this_core(S).inject & I_OFF_CLEARS != ZERO
            and data & msr_index.ARCH_PERFMON_EVENTSEL_ENABLE == ZERO
        ):
            pmu.pmcs[i].counter = ZERO
        if data != pmu.pmcs[i].eventsel:
            pmu.pmcs[i].eventsel = data
            if counts_nothing(this_core(S), i, data):
                pmu.pmcs[i].uncounted = data
            _refresh_selector(S, E, vcpu, i)
    elif kind == kvm_pmu.PMU_FIXED_CTR_CTRL:
        if data & pmu.fixed_ctr_ctrl_rsvd != ZERO:
            return GP_RESERVED
        pmu.fixed_ctr_ctrl = data
        for k in range(state.N_GP_PMC, state.N_GP_PMC + pmu.nr_arch_fixed_counters):
            _refresh_selector(S, E, vcpu, k)
    elif kind == kvm_pmu.PMU_GLOBAL_STATUS:
        if host_initiated == 0:
            return GP_READ_ONLY
        if data & pmu.global_status_rsvd != ZERO:
            return GP_RESERVED
        pmu.global_status = data
    elif kind == kvm_pmu.PMU_GLOBAL_CTRL:
        if data & pmu.global_ctrl_rsvd != ZERO:
            return GP_RESERVED
        pmu.global_ctrl = data
    elif kind == kvm_pmu.PMU_OVF_CTRL:
        if data & pmu.global_status_rsvd != ZERO:
            return GP_RESERVED
        if host_initiated == 0:
            pmu.global_status = status_after_reset(this_core(S), pmu.global_status, data)
    elif kind == kvm_pmu.PMU_PERFCTR:
        if host_initiated == 0:
            data = perfctr_value(this_core(S), data)
        pmu.pmcs[i].counter = data & pmu.counter_bitmask
    elif kind == kvm_pmu.PMU_PMC or kind == kvm_pmu.PMU_FIXED_CTR:
        if kind == kvm_pmu.PMU_PMC and data & ~pmu.counter_bitmask != ZERO:
            return GP_RESERVED
        pmu.pmcs[i].counter = data & pmu.counter_bitmask
    return 0


@jit()
def kvm_pmu_get_msr(S, E, vcpu, which):  # noqa: ARG001
    """Read a PMU register of the guest while its context is out."""
    pmu = vcpu.pmu
    kind = which & _KIND
    i = which & 15
    if kind == kvm_pmu.PMU_EVNTSEL:
        return pmu.pmcs[i].eventsel
    if kind == kvm_pmu.PMU_FIXED_CTR_CTRL:
        return pmu.fixed_ctr_ctrl
    if kind == kvm_pmu.PMU_GLOBAL_STATUS:
        return pmu.global_status
    if kind == kvm_pmu.PMU_GLOBAL_CTRL:
        return pmu.global_ctrl
    if kind == kvm_pmu.PMU_OVF_CTRL:
        return ZERO
    return pmu.pmcs[i].counter


@jit()
def pmu_entry_global_ctrl(S, M, E, vcpu):
    """GLOBAL_CTRL for VM entry (patch 28), by the VMCS field or the MSR-load list."""
    core = this_core(S)
    pmu = vcpu.pmu
    if S.config.without & state.W_GLOBAL_CTRL_SWITCH != ZERO or pmu.version == 0:
        return
    if S.config.load_global_ctrl != 0:
        charge(S, E, COST_VMWRITE)
        vmwrite(core, M, V_GUEST_GLOBAL_CTRL, pmu.global_ctrl)
    else:
        st64(M, U64(vcpu.msr_lists + ENTRY_LOAD_LIST) + U8, pmu.global_ctrl)


@jit()
def pmu_exit_global_ctrl(S, M, E, vcpu):
    """What VM exit saved of the guest's GLOBAL_CTRL (patch 28)."""
    core = this_core(S)
    pmu = vcpu.pmu
    if S.config.without & state.W_GLOBAL_CTRL_SWITCH != ZERO or pmu.version == 0:
        return
    if S.config.save_global_ctrl != 0:
        pmu.global_ctrl = vmread(core, M, V_GUEST_GLOBAL_CTRL)
        charge(S, E, COST_VMREAD)
    else:
        pmu.global_ctrl = ld64(M, U64(vcpu.msr_lists) + U8)
