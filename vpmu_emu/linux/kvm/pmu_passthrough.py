"""The passthrough vPMU: the guest's PMU context is in the hardware whenever the inner run loop runs.

Counters and GLOBAL_* are the guest's own; selectors exit, so that the event filter holds: what hardware
gets is `eventsel_hw` and `fixed_ctr_ctrl_hw`. The first version of the series, its known bugs fixed;
each of them is a quirk. Patches 12, 23, 24, 27, 28, 30, 31, 35, 37, 38, 39.
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.linux import patches, state
from vpmu_emu.linux.charge import charge
from vpmu_emu.linux.kvm import pmu as kvm_pmu
from vpmu_emu.linux.kvm import pmu_emulated
from vpmu_emu.linux.kvm.filter import check_pmu_event_filter
from vpmu_emu.linux.kvm.pmu import kvm_pmu_recalc_pmc_emulation, pmc_wants_pmi
from vpmu_emu.linux.kvm.pmu_switch import (
    clear_metrics,
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
from vpmu_emu.linux.patches import lacks
from vpmu_emu.linux.percpu import this_core
from vpmu_emu.linux.perf.guest import (
    perf_guest_enter,
    perf_guest_exit,
    perf_guest_switch_to_host_pmi_vector,
    perf_guest_switch_to_kvm_pmi_vector,
)
from vpmu_emu.linux.perf.pmi import handle_nmis, vcpu_bit
from vpmu_emu.linux.printk import LOG_PERFCTR, LOG_VERSION, printk, printk_once
from vpmu_emu.linux.trace_kinds import TR_PMU_LOAD, TR_PMU_PUT, TR_SELECTOR_HW
from vpmu_emu.machine import msr_index
from vpmu_emu.machine.lapic import LVT_PMI
from vpmu_emu.machine.mutants import I_KEEP_SELECTORS, I_OFF_CLEARS
from vpmu_emu.machine.physical import ld64, st64
from vpmu_emu.machine.pmu import counter_value, counts_nothing
from vpmu_emu.machine.pmu_rules import perfctr_value, sets_status, status_after_reset
from vpmu_emu.machine.ring import GP_PASSED, GP_READ_ONLY, GP_RESERVED, emit
from vpmu_emu.machine.u64 import ONE, U8, U15, U64, ZERO

COST_VMREAD = cost("vmread")
COST_VMWRITE = cost("vmwrite")
COST_LOAD = cost("kvm_mediated_pmu_load")
COST_PUT = cost("kvm_mediated_pmu_put")
COST_GUEST_ENTER = cost("perf_guest_enter")
COST_GUEST_EXIT = cost("perf_guest_exit")
COST_HANDLE_EVENT = cost("kvm_pmu_handle_event")

ENTRY_LOAD_LIST = 0x800
KVM_PMU_VERSION = 2
V1_FIXED_COUNTERS = 3  # KVM_MAX_NR_INTEL_FIXED_COUNTERS, which bounds kvm_pmu_cap.num_counters_fixed
OF_METRICS = patches.METRICS | patches.METRICS_BIT | patches.HOST_PERF_CAP
_KIND = ~15


@jit()
def _selectors_pass(S):
    return S.config.all_passthrough != 0 or lacks(S, patches.SELECTORS)


@jit()
def _control_passes(S):
    return S.config.all_passthrough != 0 or lacks(S, patches.CONTROL)


@jit()
def _is_switched(S, pmu):
    # Version 1 of the series knew one version of the guest's PMU, and warned of others, each way.
    if lacks(S, patches.INTEL_OPERATIONS | patches.SAVE_RESTORE):
        return False
    if S.config.quirks & state.Q_VERSION_NOT_2 != ZERO and pmu.version != KVM_PMU_VERSION:
        printk(S, LOG_VERSION, U64(pmu.version))
        return False
    return True


@jit()
def _load_status(S, E, guest):
    # Version 1 cleared what there was and set the guest's, whatever either is.
    status = rdmsrl(S, E, msr_index.MSR_CORE_PERF_GLOBAL_STATUS)
    if status != ZERO:
        wrmsrl(S, E, msr_index.MSR_CORE_PERF_GLOBAL_OVF_CTRL, status)
    if not lacks(S, patches.STATUS_SET):
        wrmsrl(S, E, msr_index.MSR_CORE_PERF_GLOBAL_STATUS_SET, guest)


@jit()
def intel_restore_pmu_context(S, E, vcpu):
    """Guest values into the hardware; GLOBAL_CTRL itself follows at VM entry (patch 23)."""
    core = this_core(S)
    pmu = vcpu.pmu
    wrmsrl(S, E, msr_index.MSR_CORE_PERF_GLOBAL_CTRL, ZERO)
    if S.config.switch == state.EAGER:
        _load_status(S, E, pmu.global_status)
    else:
        load_status(S, E, pmu.global_status)
    passes = _selectors_pass(S)
    for i in range(pmu.nr_arch_gp_counters):
        load_counter(S, E, i, pmu.pmcs[i].counter)
        load_selector(S, E, i, pmu.pmcs[i].eventsel_hw, passes)
    if not lacks(S, patches.UNEXPOSED):
        # RDPMC is passed through and would show them (patch 24).
        for i in range(pmu.nr_arch_gp_counters, core.pmu.gp):
            load_counter(S, E, i, ZERO)
            load_selector(S, E, i, ZERO, passes)
    load_fixed_ctr_ctrl(S, E, pmu.fixed_ctr_ctrl_hw, _control_passes(S))
    for i in range(state.N_GP_PMC, state.N_GP_PMC + pmu.nr_arch_fixed_counters):
        load_counter(S, E, i, pmu.pmcs[i].counter)
    if not lacks(S, patches.UNEXPOSED):
        there = core.pmu.fixed
        if S.config.quirks & state.Q_FIXED3_LEAK != ZERO:
            there = min(there, V1_FIXED_COUNTERS)
        for i in range(pmu.nr_arch_fixed_counters, there):
            load_counter(S, E, state.N_GP_PMC + i, ZERO)
    if core.pmu.perf_capabilities & msr_index.PERF_CAP_PERF_METRICS != ZERO and not lacks(S, OF_METRICS):
        clear_metrics(S, E)


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
    if lacks(S, patches.LOAD_GLOBAL_CTRL):
        pmu.loaded_insns += core.stats.host_insns - pmu.mark_insns
        pmu.loaded_branches += core.stats.host_branches - pmu.mark_branches
    for i in range(pmu.nr_arch_gp_counters):
        pmc = pmu.pmcs[i]
        pmc.counter = rdpmcl(S, E, U64(i))
        if _selectors_pass(S):
            pmc.eventsel = rdmsrl(S, E, msr_index.MSR_P6_EVNTSEL0 + U64(i))
            pmc.eventsel_hw = pmc.eventsel
            kvm_pmu_recalc_pmc_emulation(pmu, i)
        if was_loaded(S, pmc.eventsel_hw, _selectors_pass(S)) and not keep:
            wrmsrl(S, E, msr_index.MSR_P6_EVNTSEL0 + U64(i), ZERO)
        if pmc.counter != ZERO:
            wrmsrl(S, E, msr_index.MSR_IA32_PMC0 + U64(i), ZERO)
    if _control_passes(S):
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
def note_put(S, vcpu, gp, fixed):
    """Keep what the hardware PMU holds now, for reports: nothing may be left in what it had."""
    core = this_core(S)
    pmu = vcpu.pmu
    left = core.pmu.fixed_ctr_ctrl | core.pmu.global_ctrl | core.pmu.global_status
    for i in range(state.N_GP_PMC):
        pmu.put_eventsel[i] = core.pmu.eventsel[i]
        # with `enabled-only` what is off there is the host's own
        if i < gp and was_loaded(S, core.pmu.eventsel[i], False):
            left |= core.pmu.eventsel[i]
    for i in range(state.N_PMC):
        pmu.put_counters[i] = counter_value(core, i)
        if i < gp or (i >= state.N_GP_PMC and i < state.N_GP_PMC + fixed):
            left |= pmu.put_counters[i]
    pmu.put_fixed_ctr_ctrl = core.pmu.fixed_ctr_ctrl
    pmu.put_global_ctrl = core.pmu.global_ctrl
    pmu.put_global_status = core.pmu.global_status
    if left != ZERO:
        pmu.dirty_puts += ONE


@jit()
def load_lvtpc(S, E, vcpu):
    """PMIs are the guest's, masked if its LVTPC is."""
    masked = this_core(S).vapic.lvt[LVT_PMI] & msr_index.APIC_LVT_MASKED
    if lacks(S, patches.MIRROR_MASK | patches.GUEST_MASK) or S.vms[vcpu.vm].irqchip == 0:
        masked = ZERO  # kvm_lapic_get_lvtpc_mask() knows KVM's local APIC alone
    vcpu.pmu.lvtpc_masked = masked
    perf_guest_switch_to_kvm_pmi_vector(S, E, masked)


@jit()
def kvm_pmu_restore_pmu_context(S, E, vcpu):
    """Before the inner run loop, interrupts off: the host's events out, the guest's context in."""
    core = this_core(S)
    pmu = vcpu.pmu
    if lacks(S, patches.OPERATIONS | patches.RUN_LOOP):
        return
    switch_begins(S, state.SWITCH_LOAD)
    emit(E, core.t, TR_PMU_LOAD, ZERO, pmu.global_ctrl, pmu.global_status, ZERO)
    if not lacks(S, patches.KVM_GUEST_ENTER):
        charge(S, E, COST_GUEST_ENTER)  # an overflow of the host's is the host's, up to here
        perf_guest_enter(S, E)
    if not lacks(S, patches.KVM_LVTPC):
        load_lvtpc(S, E, vcpu)
    retire_work(S, E, COST_LOAD)
    if _is_switched(S, pmu):
        intel_restore_pmu_context(S, E, vcpu)
    pmu.loaded_lvtpc = core.lapic.lvt[LVT_PMI]
    pmu.guest_ctx_loaded = 1
    core.pmu.whose = vcpu_bit(vcpu.vcpu_idx)
    pmu.loads += ONE
    if lacks(S, patches.LOAD_GLOBAL_CTRL):
        wrmsrl(S, E, msr_index.MSR_CORE_PERF_GLOBAL_CTRL, pmu.global_ctrl)
    switch_ends(S)
    pmu.mark_insns = core.stats.host_insns
    pmu.mark_branches = core.stats.host_branches
    handle_nmis(S, E)


@jit()
def kvm_pmu_save_pmu_context(S, E, vcpu):
    """After the inner run loop, interrupts still off: the guest's context out, the host's events in."""
    core = this_core(S)
    pmu = vcpu.pmu
    if lacks(S, patches.OPERATIONS | patches.RUN_LOOP):
        return
    switch_begins(S, state.SWITCH_PUT)
    if lacks(S, patches.LOAD_GLOBAL_CTRL):
        pmu.global_ctrl = rdmsrl(S, E, msr_index.MSR_CORE_PERF_GLOBAL_CTRL)
    if _is_switched(S, pmu):
        intel_save_pmu_context(S, E, vcpu)
    retire_work(S, E, COST_PUT)
    pmu.guest_ctx_loaded = 0
    core.pmu.whose = state.HOSTS
    pmu.puts += ONE
    note_put(S, vcpu, core.pmu.gp, core.pmu.fixed)
    if not lacks(S, patches.KVM_LVTPC):
        perf_guest_switch_to_host_pmi_vector(S, E)
    emit(E, core.t, TR_PMU_PUT, ZERO, pmu.global_ctrl, pmu.global_status, ZERO)
    if not lacks(S, patches.KVM_GUEST_ENTER):
        retire_work(S, E, COST_GUEST_EXIT)
        perf_guest_exit(S, E)
    switch_ends(S)
    handle_nmis(S, E)


@jit()
def _refresh_selector(S, E, vcpu, i):
    # Patches 35 and 37: a filtered event leaves nothing in the hardware. False if it is denied.
    pmu = vcpu.pmu
    pmc = pmu.pmcs[i]
    asks = patches.FILTER | (patches.EVENTSEL_HW if i < state.N_GP_PMC else patches.FIXED_HW)
    allowed = lacks(S, asks) or check_pmu_event_filter(S, E, vcpu, i)
    if i < state.N_GP_PMC:
        pmc.eventsel_hw = pmc.eventsel if allowed else ZERO
        emit(E, this_core(S).t, TR_SELECTOR_HW, ZERO, U64(i), pmc.eventsel_hw, pmc.eventsel)
    else:
        shift = U64(4 * (i - state.N_GP_PMC))
        pmu.fixed_ctr_ctrl_hw &= ~(U15 << shift)
        if allowed:
            pmu.fixed_ctr_ctrl_hw |= pmu.fixed_ctr_ctrl & (U15 << shift)
        given = (pmu.fixed_ctr_ctrl_hw >> shift) & U15
        asked = (pmu.fixed_ctr_ctrl >> shift) & U15
        emit(E, this_core(S).t, TR_SELECTOR_HW, ZERO, U64(i), given, asked)
    kvm_pmu_recalc_pmc_emulation(pmu, i)
    return allowed


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
        before = counter_now(S, E, pmu, i)
        counter = (before + pmc.emulated_counter) & pmu.counter_bitmask
        set_counter_now(S, E, pmu, i, counter)
        pmc.emulated_counter = ZERO
        # Version 1 saw a wrap only where the sum is 0.
        v1 = S.config.quirks & state.Q_WRAP_AT_ZERO != ZERO
        wraps = counter == ZERO if v1 else counter < before
        if wraps and not lacks(S, patches.WRAP):
            if sets_status(this_core(S), i):
                set_overflow_now(S, E, pmu, i)
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
        if data != pmu.pmcs[i].eventsel and counts_nothing(this_core(S), i, data):
            pmu.pmcs[i].uncounted = data
        pmu.pmcs[i].eventsel = data
        _refresh_selector(S, E, vcpu, i)  # the filter may be a new one, whatever the value was
    elif kind == kvm_pmu.PMU_FIXED_CTR_CTRL:
        if data & pmu.fixed_ctr_ctrl_rsvd != ZERO:
            return GP_RESERVED
        pmu.fixed_ctr_ctrl = data
        for k in range(state.N_GP_PMC, state.N_GP_PMC + pmu.nr_arch_fixed_counters):
            if not _refresh_selector(S, E, vcpu, k):
                pmu.pmcs[k].counter = ZERO
    elif kind == kvm_pmu.PMU_GLOBAL_STATUS:
        if host_initiated == 0:
            return GP_READ_ONLY
        if data & pmu.global_status_rsvd != ZERO:
            return GP_RESERVED
        pmu.global_status = data
    elif kind == kvm_pmu.PMU_GLOBAL_CTRL:
        if data & pmu.global_ctrl_rsvd != ZERO:
            return GP_RESERVED
        diff = pmu.global_ctrl ^ data
        pmu.global_ctrl = data
        if lacks(S, patches.NO_EVENT):
            pmu_emulated.reprogram_counters(S, E, vcpu, diff)
    elif kind == kvm_pmu.PMU_OVF_CTRL:
        if data & pmu.global_status_rsvd != ZERO:
            return GP_RESERVED
        if host_initiated == 0:
            pmu.global_status = status_after_reset(this_core(S), pmu.global_status, data)
    elif kind == kvm_pmu.PMU_PERFCTR:
        if host_initiated == 0 and pmu.lazy != 0:
            data = perfctr_value(this_core(S), data)
        elif host_initiated == 0:  # a guest's writes pass: how did this one come here? (patch 18)
            printk_once(S, LOG_PERFCTR, U64(i))
            return GP_PASSED
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
    pmu = vcpu.pmu
    if lacks(S, patches.LOAD_GLOBAL_CTRL | patches.GLOBAL_CTRL) or pmu.version == 0:
        return
    switch_begins(S, state.SWITCH_ENTRY)
    if S.config.load_global_ctrl != 0:
        charge(S, E, COST_VMWRITE)
        vmx_set_global_ctrl(M, vcpu, pmu.global_ctrl)
        note_vmcs_access(S, E, state.ACCESS_VMWRITE, pmu.global_ctrl)
    else:
        st64(M, U64(vcpu.msr_lists + ENTRY_LOAD_LIST) + U8, pmu.global_ctrl)
    switch_ends(S)


@jit()
def pmu_exit_global_ctrl(S, M, E, vcpu):
    """What VM exit saved of the guest's GLOBAL_CTRL (patch 28)."""
    pmu = vcpu.pmu
    if lacks(S, patches.LOAD_GLOBAL_CTRL | patches.GLOBAL_CTRL) or pmu.version == 0:
        return
    switch_begins(S, state.SWITCH_EXIT)
    if S.config.save_global_ctrl != 0:
        pmu.global_ctrl = vmx_get_global_ctrl(M, vcpu)
        note_vmcs_access(S, E, state.ACCESS_VMREAD, pmu.global_ctrl)
        charge(S, E, COST_VMREAD)
    else:
        pmu.global_ctrl = ld64(M, U64(vcpu.msr_lists) + U8)
    switch_ends(S)
