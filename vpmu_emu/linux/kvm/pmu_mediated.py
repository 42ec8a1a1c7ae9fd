"""The mediated vPMU, as Linux merged it: selectors always exit, counters pass, the rest by shape.

The guest's context is in the hardware whenever the inner run loop runs, and in the record outside of it:
what exits is done there and then. What hardware gets of selectors is `eventsel_hw` and `fixed_ctr_ctrl_hw`.
arch/x86/kvm/pmu.c, vmx/pmu_intel.c, vmx/vmx.c of 7.0, with 7.1's fix of the filter of fixed counters.
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.linux import state
from vpmu_emu.linux.charge import charge
from vpmu_emu.linux.kvm import pmu as kvm_pmu
from vpmu_emu.linux.kvm.filter import check_pmu_event_filter
from vpmu_emu.linux.kvm.pmu import (
    fixed_ctrl_field,
    kvm_pmu_recalc_pmc_emulation,
    kvm_pmu_request_counter_reprogram,
    pmc_is_locally_enabled,
    pmc_wants_pmi,
)
from vpmu_emu.linux.kvm.pmu_passthrough import note_put
from vpmu_emu.linux.kvm.pmu_switch import (
    counter_now,
    load_counter,
    load_fixed_ctr_ctrl,
    load_selector,
    load_status,
    note_vmcs_access,
    set_counter_now,
    set_overflow_now,
    switch_begins,
    switch_ends,
    was_loaded,
)
from vpmu_emu.linux.kvm.vmx.registers import vmx_get_global_ctrl, vmx_set_global_ctrl
from vpmu_emu.linux.native import cost, rdmsrl, rdpmcl, retire_work, wrmsrl
from vpmu_emu.linux.overflow_handler import kvm_make_request, pmc_bit
from vpmu_emu.linux.percpu import this_core
from vpmu_emu.linux.perf.guest import (
    perf_load_guest_context,
    perf_load_guest_lvtpc,
    perf_put_guest_context,
    perf_put_guest_lvtpc,
)
from vpmu_emu.linux.perf.pmi import handle_nmis, vcpu_bit
from vpmu_emu.linux.trace_kinds import TR_PMU_LOAD, TR_PMU_PUT, TR_SELECTOR_HW
from vpmu_emu.machine import msr_index
from vpmu_emu.machine.lapic import LVT_PMI
from vpmu_emu.machine.mutants import I_KEEP_SELECTORS, I_OFF_CLEARS
from vpmu_emu.machine.physical import ld8, ld64
from vpmu_emu.machine.pmu import counts_nothing
from vpmu_emu.machine.pmu_rules import perfctr_value, sets_status, status_after_reset
from vpmu_emu.machine.ring import GP_READ_ONLY, GP_RESERVED, emit
from vpmu_emu.machine.u64 import ONE, U3, U7, U8, U15, U64, ZERO

COST_VMREAD = cost("vmread")
COST_VMWRITE = cost("vmwrite")
COST_LOAD = cost("kvm_mediated_pmu_load")
COST_PUT = cost("kvm_mediated_pmu_put")
COST_LOAD_CONTEXT = cost("perf_guest_enter")
COST_PUT_CONTEXT = cost("perf_guest_exit")
COST_HANDLE_EVENT = cost("kvm_pmu_handle_event")
COST_REPROGRAM = cost("reprogram_counter")

_KIND = ~15
_WRITES = U64(0x800)  # half of the MSR bitmap


# --- the switch -----------------------------------------------------------------------------------------
@jit()
def kvm_mediated_pmu_load(S, E, vcpu):
    """Before the inner run loop, interrupts off: the host's events out, the guest's context in.

    GLOBAL_CTRL itself follows at VM entry; until then it is 0, or loading would count and interrupt.
    """
    core = this_core(S)
    pmu = vcpu.pmu
    switch_begins(S, state.SWITCH_LOAD)
    emit(E, core.t, TR_PMU_LOAD, ZERO, pmu.global_ctrl, pmu.global_status, ZERO)
    retire_work(S, E, COST_LOAD_CONTEXT)
    perf_load_guest_context(S, E)
    wrmsrl(S, E, msr_index.MSR_CORE_PERF_GLOBAL_CTRL, ZERO)
    load_lvtpc(S, E, vcpu)
    retire_work(S, E, COST_LOAD)
    for i in range(pmu.nr_arch_gp_counters):
        load_counter(S, E, i, pmu.pmcs[i].counter)
        load_selector(S, E, i, pmu.pmcs[i].eventsel_hw, False)
    for i in range(state.N_GP_PMC, state.N_GP_PMC + pmu.nr_arch_fixed_counters):
        load_counter(S, E, i, pmu.pmcs[i].counter)
    load_status(S, E, pmu.global_status)
    load_fixed_ctr_ctrl(S, E, pmu.fixed_ctr_ctrl_hw, False)
    pmu.guest_ctx_loaded = 1
    core.pmu.whose = vcpu_bit(vcpu.vcpu_idx)
    pmu.loads += ONE
    switch_ends(S)
    pmu.mark_insns = core.stats.host_insns
    pmu.mark_branches = core.stats.host_branches
    handle_nmis(S, E)


@jit()
def load_lvtpc(S, E, vcpu):
    """PMIs are the guest's, masked if its LVTPC is."""
    lvtpc = this_core(S).vapic.lvt[LVT_PMI]
    vcpu.pmu.lvtpc_masked = lvtpc & msr_index.APIC_LVT_MASKED
    perf_load_guest_lvtpc(S, E, lvtpc)


@jit()
def kvm_mediated_pmu_put(S, E, vcpu):
    """After it, interrupts still off: the guest's context out, the host's events in."""
    core = this_core(S)
    pmu = vcpu.pmu
    keep = core.inject & I_KEEP_SELECTORS != ZERO
    switch_begins(S, state.SWITCH_PUT)
    pmu.global_status = rdmsrl(S, E, msr_index.MSR_CORE_PERF_GLOBAL_STATUS)
    if pmu.global_status != ZERO:
        wrmsrl(S, E, msr_index.MSR_CORE_PERF_GLOBAL_OVF_CTRL, pmu.global_status)
    if pmu.fixed_ctr_ctrl_hw != ZERO:
        wrmsrl(S, E, msr_index.MSR_CORE_PERF_FIXED_CTR_CTRL, ZERO)
    for i in range(pmu.nr_arch_gp_counters):
        pmc = pmu.pmcs[i]
        pmc.counter = rdpmcl(S, E, U64(i))
        if pmc.counter != ZERO:
            wrmsrl(S, E, msr_index.MSR_IA32_PMC0 + U64(i), ZERO)
        if was_loaded(S, pmc.eventsel_hw, False) and not keep:
            wrmsrl(S, E, msr_index.MSR_P6_EVNTSEL0 + U64(i), ZERO)
    for i in range(pmu.nr_arch_fixed_counters):
        pmc = pmu.pmcs[state.N_GP_PMC + i]
        pmc.counter = rdpmcl(S, E, msr_index.INTEL_PMC_FIXED_RDPMC_BASE | U64(i))
        if pmc.counter != ZERO:
            wrmsrl(S, E, msr_index.MSR_CORE_PERF_FIXED_CTR0 + U64(i), ZERO)
    retire_work(S, E, COST_PUT)
    pmu.guest_ctx_loaded = 0
    core.pmu.whose = state.HOSTS
    pmu.puts += ONE
    note_put(S, vcpu, pmu.nr_arch_gp_counters, pmu.nr_arch_fixed_counters)
    perf_put_guest_lvtpc(S, E)
    emit(E, core.t, TR_PMU_PUT, ZERO, pmu.global_ctrl, pmu.global_status, ZERO)
    retire_work(S, E, COST_PUT_CONTEXT)
    perf_put_guest_context(S, E)
    switch_ends(S)
    handle_nmis(S, E)


@jit()
def intel_pmu_write_global_ctrl(S, M, E, vcpu):
    """What the next VM entry loads; written when KVM changes it, not at every entry.

    The VMM's write comes while the vCPU may be on no core.
    """
    charge(S, E, COST_VMWRITE)
    vmx_set_global_ctrl(M, vcpu, vcpu.pmu.global_ctrl)


@jit()
def vmx_refresh_guest_perf_global_control(S, M, E, vcpu):
    """After a VM exit: what it saved, if the guest can have written it without one."""
    pmu = vcpu.pmu
    at = U64(vcpu.msr_bitmap) + _WRITES + (msr_index.MSR_CORE_PERF_GLOBAL_CTRL >> U3)
    if ld8(M, at) >> (msr_index.MSR_CORE_PERF_GLOBAL_CTRL & U7) & ONE != ZERO:
        return
    switch_begins(S, state.SWITCH_EXIT)
    charge(S, E, COST_VMREAD)
    if S.config.save_global_ctrl != 0:
        pmu.global_ctrl = vmx_get_global_ctrl(M, vcpu)
        note_vmcs_access(S, E, state.ACCESS_VMREAD, pmu.global_ctrl)
    else:
        pmu.global_ctrl = ld64(M, U64(vcpu.msr_lists) + U8)  # the slot of the MSR-store list
        charge(S, E, COST_VMWRITE)
        vmx_set_global_ctrl(M, vcpu, pmu.global_ctrl)
        note_vmcs_access(S, E, state.ACCESS_VMWRITE, pmu.global_ctrl)
    switch_ends(S)


# --- counting -------------------------------------------------------------------------------------------
@jit()
def kvm_pmu_incr_counter(S, E, vcpu, i):
    """One more in software, at once, wherever the context is."""
    pmu = vcpu.pmu
    counter = (counter_now(S, E, pmu, i) + ONE) & pmu.counter_bitmask
    set_counter_now(S, E, pmu, i, counter)
    if counter == ZERO:
        if sets_status(this_core(S), i):
            set_overflow_now(S, E, pmu, i)
        if pmc_wants_pmi(S, vcpu, i):
            kvm_make_request(S, E, vcpu, state.KVM_REQ_PMI)


@jit()
def pmc_read_counter(vcpu, i):
    """The counter as wide as the guest's: hardware's own width may be another."""
    return vcpu.pmu.pmcs[i].counter & vcpu.pmu.counter_bitmask


@jit()
def kvm_pmu_is_fastpath_emulation_allowed(vcpu):
    """Whether no counter of instructions is on: inside the inner loop it is in the hardware."""
    return vcpu.pmu.pmc_counting_instructions & vcpu.pmu.global_ctrl == ZERO


@jit()
def kvm_mediated_pmu_refresh_event_filter(S, E, vcpu, i):
    """What hardware gets of pmc i: what the guest asked for, without enables if the filter denies."""
    pmu = vcpu.pmu
    pmc = pmu.pmcs[i]
    allowed = pmc_is_locally_enabled(pmu, i) and check_pmu_event_filter(S, E, vcpu, i)
    if i < state.N_GP_PMC:
        pmc.eventsel_hw &= ~msr_index.ARCH_PERFMON_EVENTSEL_ENABLE
        if allowed:
            pmc.eventsel_hw |= pmc.eventsel & msr_index.ARCH_PERFMON_EVENTSEL_ENABLE
        emit(E, this_core(S).t, TR_SELECTOR_HW, ZERO, U64(i), pmc.eventsel_hw, pmc.eventsel)
    else:
        field = U15 << U64(4 * (i - state.N_GP_PMC))
        pmu.fixed_ctr_ctrl_hw &= ~field
        if allowed:
            pmu.fixed_ctr_ctrl_hw |= pmu.fixed_ctr_ctrl & field
        given, asked = fixed_ctrl_field(pmu.fixed_ctr_ctrl_hw, i), fixed_ctrl_field(pmu.fixed_ctr_ctrl, i)
        emit(E, this_core(S).t, TR_SELECTOR_HW, ZERO, U64(i), given, asked)


@jit()
def kvm_pmu_handle_event(S, E, vcpu):
    """KVM_REQ_PMU: new selectors and a new filter reach `_hw`, which the load that follows writes."""
    pmu = vcpu.pmu
    charge(S, E, COST_HANDLE_EVENT)
    bitmap = pmu.reprogram_pmi & pmu.all_valid_pmc
    pmu.reprogram_pmi = ZERO
    for i in range(state.N_PMC):
        if bitmap & pmc_bit(i) != ZERO:
            charge(S, E, COST_REPROGRAM)
            kvm_mediated_pmu_refresh_event_filter(S, E, vcpu, i)
            kvm_pmu_recalc_pmc_emulation(pmu, i)


# --- registers ------------------------------------------------------------------------------------------
@jit()
def reprogram_fixed_counters(S, E, vcpu, data):
    """A new FIXED_CTR_CTRL: all of it is what hardware gets, until KVM_REQ_PMU has asked the filter.

    7.0 compared with what the guest had written, so that the field of a denied counter stayed enabled in
    `_hw` whenever another one changed; 7.1 compares with what hardware had.
    """
    pmu = vcpu.pmu
    old = pmu.fixed_ctr_ctrl if S.config.quirks & state.Q_FIXED_FILTER != ZERO else pmu.fixed_ctr_ctrl_hw
    pmu.fixed_ctr_ctrl = data
    pmu.fixed_ctr_ctrl_hw = data
    for i in range(state.N_GP_PMC, state.N_GP_PMC + pmu.nr_arch_fixed_counters):
        if fixed_ctrl_field(old, i) != fixed_ctrl_field(data, i):
            pmu.pmc_in_use |= pmc_bit(i)
            kvm_pmu_recalc_pmc_emulation(pmu, i)
            kvm_pmu_request_counter_reprogram(S, E, vcpu, i)


@jit()
def kvm_pmu_set_msr(S, M, E, vcpu, which, data, host_initiated):
    """Write a PMU register of the guest while its context is out; not 0 means #GP: GP_*."""
    pmu = vcpu.pmu
    kind = which & _KIND
    i = which & 15
    if kind == kvm_pmu.PMU_EVNTSEL:
        if data & pmu.eventsel_rsvd != ZERO:
            return GP_RESERVED
        off = data & msr_index.ARCH_PERFMON_EVENTSEL_ENABLE == ZERO
        if this_core(S).inject & I_OFF_CLEARS != ZERO and off:
            pmu.pmcs[i].counter = ZERO
        if data != pmu.pmcs[i].eventsel:
            pmu.pmcs[i].eventsel = data
            pmu.pmcs[i].eventsel_hw = data
            if counts_nothing(this_core(S), i, data):
                pmu.pmcs[i].uncounted = data
            kvm_pmu_recalc_pmc_emulation(pmu, i)
            kvm_pmu_request_counter_reprogram(S, E, vcpu, i)
    elif kind == kvm_pmu.PMU_FIXED_CTR_CTRL:
        if data & pmu.fixed_ctr_ctrl_rsvd != ZERO:
            return GP_RESERVED
        if data != pmu.fixed_ctr_ctrl:
            reprogram_fixed_counters(S, E, vcpu, data)
    elif kind == kvm_pmu.PMU_GLOBAL_STATUS:
        if host_initiated == 0:
            return GP_READ_ONLY
        if data & pmu.global_status_rsvd != ZERO:
            return GP_RESERVED
        pmu.global_status = data
    elif kind == kvm_pmu.PMU_GLOBAL_CTRL:
        if data & pmu.global_ctrl_rsvd != ZERO:
            return GP_RESERVED
        diff = (pmu.global_ctrl ^ data) & pmu.all_valid_pmc
        pmu.global_ctrl = data
        for k in range(state.N_PMC):  # reprogram_counters()
            if diff & pmc_bit(k) != ZERO:
                kvm_pmu_request_counter_reprogram(S, E, vcpu, k)
        intel_pmu_write_global_ctrl(S, M, E, vcpu)
    elif kind == kvm_pmu.PMU_OVF_CTRL:
        if data & pmu.global_status_rsvd != ZERO:
            return GP_RESERVED
        if host_initiated == 0:
            pmu.global_status = status_after_reset(this_core(S), pmu.global_status, data)
    else:
        if kind == kvm_pmu.PMU_PERFCTR and host_initiated == 0:
            data = perfctr_value(this_core(S), data)
        if kind == kvm_pmu.PMU_PMC and data & ~pmu.counter_bitmask != ZERO:
            return GP_RESERVED
        pmu.pmcs[i].counter = data & pmu.counter_bitmask
    return 0
