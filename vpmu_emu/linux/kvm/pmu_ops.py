"""Where the vPMUs differ, and nowhere else: one function for each thing that KVM asks of one (kvm_pmu_ops).

                 VPMU_EMULATED               VPMU_PASSTHROUGH             VPMU_MEDIATED
    owner        perf                        the guest                    the guest
    load, put    -                           context in and out, around   the same; `--switch` says
                                             the inner loop               how much of it
    entry        atomic_switch_perf_msrs()   GLOBAL_CTRL, at every one    (KVM's writes do it)
    exit         -                           GLOBAL_CTRL, at every one    GLOBAL_CTRL, if it passes
    get, set,    ask perf                    registers in the record      registers in the record
    rdpmc
    increments   at KVM_REQ_PMU              at KVM_REQ_PMU               at once: no fast path may
    handle_event reprogram_counter()         software counts, a filter    selectors, a filter
    deliver_pmi  freezes branch records      -                            -
    records      an event of the VMM's task  none                         none
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.linux import patches
from vpmu_emu.linux.kvm import pmu_emulated, pmu_mediated, pmu_passthrough
from vpmu_emu.linux.kvm.pmu import (
    PMU_FIXED_CTR,
    PMU_PERFCTR,
    PMU_PMC,
    kvm_pmu_is_valid_msr,
    kvm_pmu_request_counter_reprogram,
)
from vpmu_emu.linux.kvm.pmu_switch import stays
from vpmu_emu.linux.kvm.vmx import lbr
from vpmu_emu.linux.kvm.vmx.first_touch import put_in_force
from vpmu_emu.linux.kvm.vmx.switch_perf_msrs import atomic_switch_perf_msrs
from vpmu_emu.linux.overflow_handler import kvm_make_request, pmc_bit
from vpmu_emu.linux.patches import lacks
from vpmu_emu.linux.percpu import kvm_get_running_vcpu, this_core
from vpmu_emu.linux.state import (
    KVM_REQ_PMU,
    Q_NO_GLOBAL_CHECK,
    VPMU_EMULATED,
    VPMU_MEDIATED,
    VPMU_PASSTHROUGH,
)
from vpmu_emu.machine import msr_index
from vpmu_emu.machine.lapic import LVT_PMI
from vpmu_emu.machine.u64 import ONE, ZERO

_KIND = ~15


@jit()
def _vpmu(S, vcpu):
    # VPMU_*: where a mediated vPMU has no version (kvm_vcpu_has_mediated_pmu) host events go on as with
    # perf's.
    which = S.vms[vcpu.vm].vpmu
    if which == VPMU_MEDIATED and vcpu.pmu.version == 0:
        return VPMU_EMULATED
    return which


@jit()
def _owns_pmu(S, vcpu):
    # Whether a guest has the hardware counters while it runs.
    return _vpmu(S, vcpu) != VPMU_EMULATED


@jit()
def _has_vlbr(S, vcpu):
    # Where the guest owns the PMU entry and PMI do not look at branch records (patch 29); there are none.
    return not _owns_pmu(S, vcpu) or lacks(S, patches.VLBR)


@jit()
def load(S, E, vcpu):
    """Before the inner loop, interrupts off."""
    if vcpu.pmu.lazy != 0:
        return
    which = _vpmu(S, vcpu)
    if vcpu.pmu.guest_ctx_loaded != 0:  # it has stayed: what can have changed is the guest's LVTPC
        masked = this_core(S).vapic.lvt[LVT_PMI] & msr_index.APIC_LVT_MASKED
        if masked == vcpu.pmu.lvtpc_masked:
            return
        if which == VPMU_MEDIATED:
            pmu_mediated.load_lvtpc(S, E, vcpu)
        else:
            pmu_passthrough.load_lvtpc(S, E, vcpu)
    elif which == VPMU_MEDIATED:
        pmu_mediated.kvm_mediated_pmu_load(S, E, vcpu)
    elif which == VPMU_PASSTHROUGH and vcpu.pmu.version != 0:
        pmu_passthrough.kvm_pmu_restore_pmu_context(S, E, vcpu)


@jit()
def put(S, E, vcpu):
    """After it, interrupts still off."""
    if not stays(S):
        out(S, E, vcpu)


@jit()
def out(S, E, vcpu):
    """The guest's context leaves the hardware, if it is there: host or KVM need what is in it."""
    if vcpu.pmu.guest_ctx_loaded == 0:
        return
    which = _vpmu(S, vcpu)
    if which == VPMU_MEDIATED:
        pmu_mediated.kvm_mediated_pmu_put(S, E, vcpu)
    elif which == VPMU_PASSTHROUGH:
        pmu_passthrough.kvm_pmu_save_pmu_context(S, E, vcpu)


@jit()
def touched(S, M, vcpu):
    """KVM has done an access to the PMU for the guest: with `--switch lazy` the first is the last."""
    if vcpu.pmu.lazy != 0:
        vcpu.pmu.lazy = 0
        put_in_force(S, M, vcpu)


@jit()
def entry(S, M, E, vcpu):
    """Right before every VM entry."""
    which = _vpmu(S, vcpu)
    if which == VPMU_EMULATED or vcpu.pmu.lazy != 0:
        atomic_switch_perf_msrs(S, M, E, vcpu)
    elif which == VPMU_PASSTHROUGH:
        pmu_passthrough.pmu_entry_global_ctrl(S, M, E, vcpu)
    if _has_vlbr(S, vcpu):
        lbr.vmx_passthrough_lbr_msrs(S, M, vcpu)


@jit()
def exit_(S, M, E, vcpu):
    """Right after every VM exit."""
    if vcpu.pmu.lazy != 0:
        return
    which = _vpmu(S, vcpu)
    if which == VPMU_MEDIATED:
        pmu_mediated.vmx_refresh_guest_perf_global_control(S, M, E, vcpu)
    elif which == VPMU_PASSTHROUGH:
        pmu_passthrough.pmu_exit_global_ctrl(S, M, E, vcpu)


@jit()
def handle_event(S, M, E, vcpu):
    """KVM_REQ_PMU."""
    if vcpu.pmu.reprogram_pmi != ZERO:
        out(S, E, vcpu)  # selectors change
    which = _vpmu(S, vcpu)
    if which == VPMU_MEDIATED:
        pmu_mediated.kvm_pmu_handle_event(S, E, vcpu)
    elif which == VPMU_PASSTHROUGH and not lacks(S, patches.EMULATED):
        pmu_passthrough.kvm_passthrough_pmu_handle_event(S, E, vcpu)
    else:
        pmu_emulated.kvm_pmu_handle_event(S, M, E, vcpu)


@jit()
def deliver_pmi(S, M, vcpu):
    """Before a PMI is delivered."""
    if _has_vlbr(S, vcpu):
        lbr.intel_pmu_deliver_pmi(S, M, vcpu)


@jit()
def counts_while_off(S, vcpu):
    """Whether an emulated instruction counts although GLOBAL_CTRL has the counter off."""
    return _vpmu(S, vcpu) == VPMU_PASSTHROUGH and S.config.quirks & Q_NO_GLOBAL_CHECK != ZERO


@jit()
def incr_counter(S, E, vcpu, i):
    """KVM did an instruction of the guest that pmc i counts (kvm_pmu_incr_counter)."""
    pmu = vcpu.pmu
    which = _vpmu(S, vcpu)
    if which == VPMU_MEDIATED:
        pmu_mediated.kvm_pmu_incr_counter(S, E, vcpu, i)
        return
    pmu.pmcs[i].emulated_counter += ONE
    if which == VPMU_PASSTHROUGH:
        pmu.incremented_pmc_idx |= pmc_bit(i)
        kvm_make_request(S, E, vcpu, KVM_REQ_PMU)
    else:
        kvm_pmu_request_counter_reprogram(S, E, vcpu, i)


@jit()
def is_fastpath_emulation_allowed(S, vcpu):
    """Whether KVM may do an instruction within the inner loop, where a guest's counters are in hardware."""
    return _vpmu(S, vcpu) != VPMU_MEDIATED or pmu_mediated.kvm_pmu_is_fastpath_emulation_allowed(vcpu)


@jit()
def is_lbr_msr(S, vcpu, index):
    """Whether this guest has branch records, and MSR `index` is one of them."""
    return _has_vlbr(S, vcpu) and lbr.intel_pmu_is_valid_lbr_msr(vcpu, index)


@jit()
def debugctl_written(S, E, vcpu, value):
    """The guest wrote IA32_DEBUGCTL."""
    if _has_vlbr(S, vcpu):
        lbr.intel_pmu_debugctl_written(S, E, vcpu, value)


@jit()
def _is_counter(which):
    kind = which & _KIND
    return kind == PMU_PERFCTR or kind == PMU_PMC or kind == PMU_FIXED_CTR


@jit()
def get_msr(S, E, vcpu, which):
    """A register of the guest's PMU; `which` is from kvm_pmu_is_valid_msr()."""
    if _vpmu(S, vcpu) == VPMU_MEDIATED and _is_counter(which):
        return pmu_mediated.pmc_read_counter(vcpu, which & 15)
    if _owns_pmu(S, vcpu):
        return pmu_passthrough.kvm_pmu_get_msr(S, E, vcpu, which)
    return pmu_emulated.kvm_pmu_get_msr(S, E, vcpu, which)


@jit()
def set_msr(S, M, E, vcpu, which, data, host_initiated):
    """Write one; not 0 means #GP: GP_*."""
    vpmu = _vpmu(S, vcpu)
    if vpmu == VPMU_MEDIATED:
        return pmu_mediated.kvm_pmu_set_msr(S, M, E, vcpu, which, data, host_initiated)
    if vpmu == VPMU_PASSTHROUGH:
        return pmu_passthrough.kvm_pmu_set_msr(S, E, vcpu, which, data, host_initiated)
    return pmu_emulated.kvm_pmu_set_msr(S, E, vcpu, which, data, host_initiated)


@jit()
def peek_msr(S, E, vcpu, which):
    """What get_msr() would give; it takes no time and changes nothing."""
    if not _owns_pmu(S, vcpu) and _is_counter(which):
        return pmu_emulated.pmc_counter_now(S, vcpu, which & 15)
    return get_msr(S, E, vcpu, which)


@jit()
def rdpmc(S, E, vcpu, i):
    """The value of pmc i for an RDPMC that exits."""
    vpmu = _vpmu(S, vcpu)
    if vpmu == VPMU_MEDIATED:
        return pmu_mediated.pmc_read_counter(vcpu, i)
    if vpmu == VPMU_PASSTHROUGH:
        return vcpu.pmu.pmcs[i].counter
    return pmu_emulated.pmc_read_counter(S, E, vcpu, i)


@jit()
def host_get_msr(S, E, index):
    """The VMM reads a register of the guest's PMU: (1 if there is none, its value)."""
    vcpu = kvm_get_running_vcpu(S)
    pmu = vcpu.pmu
    which = kvm_pmu_is_valid_msr(pmu, index)
    if which < 0:
        if is_lbr_msr(S, vcpu, index):
            return 0, lbr.intel_pmu_handle_lbr_msrs_access(S, E, vcpu, index, ZERO, 0)
        return 1, ZERO
    value = get_msr(S, E, vcpu, which)
    if _owns_pmu(S, vcpu) and _is_counter(which):  # what waits for KVM_REQ_PMU belongs to it
        value = (value + pmu.pmcs[which & 15].emulated_counter) & pmu.counter_bitmask
    return 0, value


@jit()
def host_set_msr(S, M, E, index, value):
    """The VMM writes one; 1 if it is refused."""
    vcpu = kvm_get_running_vcpu(S)
    which = kvm_pmu_is_valid_msr(vcpu.pmu, index)
    if which < 0:
        if not is_lbr_msr(S, vcpu, index):
            return 1
        lbr.intel_pmu_handle_lbr_msrs_access(S, E, vcpu, index, value, 1)
        return 0
    fault = set_msr(S, M, E, vcpu, which, value, 1)
    touched(S, M, vcpu)
    if _owns_pmu(S, vcpu) and _is_counter(which):
        vcpu.pmu.pmcs[which & 15].emulated_counter = ZERO
    return fault
