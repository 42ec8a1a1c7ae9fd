"""Where the vPMUs differ, and nowhere else: one function for each thing that KVM asks of one (kvm_pmu_ops).

                     perf owns the PMU            the guest owns it (`vm.owns_pmu`)
    load, put        -                            the guest's context in and out, around the inner loop
    entry, exit      atomic_switch_perf_msrs()    GLOBAL_CTRL, in the VMCS or the MSR lists
    get, set, rdpmc  ask perf                     the registers in the record: the context is out
    incr_counter     reprogrammed at KVM_REQ_PMU  added at KVM_REQ_PMU
    handle_event     reprogram_counter()          software counts, a new filter
    deliver_pmi      freezes branch records       -
    branch records   by a perf event of the VMM's thread   none
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.linux import patches
from vpmu_emu.linux.kvm import pmu_emulated, pmu_passthrough
from vpmu_emu.linux.kvm.pmu import (
    PMU_FIXED_CTR,
    PMU_PERFCTR,
    PMU_PMC,
    kvm_pmu_is_valid_msr,
    kvm_pmu_request_counter_reprogram,
)
from vpmu_emu.linux.kvm.vmx import lbr
from vpmu_emu.linux.kvm.vmx.switch_perf_msrs import atomic_switch_perf_msrs
from vpmu_emu.linux.overflow_handler import kvm_make_request, pmc_bit
from vpmu_emu.linux.patches import lacks
from vpmu_emu.linux.percpu import kvm_get_running_vcpu
from vpmu_emu.linux.state import KVM_REQ_PMU, Q_NO_GLOBAL_CHECK
from vpmu_emu.machine.u64 import ONE, ZERO

_KIND = ~15


@jit()
def _owns_pmu(S, vcpu):
    # Whether a guest has the hardware counters while it runs.
    return S.vms[vcpu.vm].owns_pmu != 0


@jit()
def _has_vlbr(S, vcpu):
    # Where the guest owns the PMU entry and PMI do not look at branch records (patch 29); there are none.
    return not _owns_pmu(S, vcpu) or lacks(S, patches.VLBR)


@jit()
def load(S, E, vcpu):
    """Before the inner loop, interrupts off."""
    if _owns_pmu(S, vcpu) and vcpu.pmu.version != 0:
        pmu_passthrough.kvm_pmu_restore_pmu_context(S, E, vcpu)


@jit()
def put(S, E, vcpu):
    """After it, interrupts still off."""
    if _owns_pmu(S, vcpu) and vcpu.pmu.version != 0:
        pmu_passthrough.kvm_pmu_save_pmu_context(S, E, vcpu)


@jit()
def entry(S, M, E, vcpu):
    """Right before every VM entry."""
    if _owns_pmu(S, vcpu):
        pmu_passthrough.pmu_entry_global_ctrl(S, M, E, vcpu)
    else:
        atomic_switch_perf_msrs(S, M, E, vcpu)
    if _has_vlbr(S, vcpu):
        lbr.vmx_passthrough_lbr_msrs(S, M, vcpu)


@jit()
def exit_(S, M, E, vcpu):
    """Right after every VM exit."""
    if _owns_pmu(S, vcpu):
        pmu_passthrough.pmu_exit_global_ctrl(S, M, E, vcpu)


@jit()
def handle_event(S, M, E, vcpu):
    """KVM_REQ_PMU."""
    if _owns_pmu(S, vcpu) and not lacks(S, patches.EMULATED):
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
    return _owns_pmu(S, vcpu) and S.config.quirks & Q_NO_GLOBAL_CHECK != ZERO


@jit()
def incr_counter(S, E, vcpu, i):
    """KVM did an instruction of the guest that pmc i counts (kvm_pmu_incr_counter)."""
    pmu = vcpu.pmu
    pmu.pmcs[i].emulated_counter += ONE
    if _owns_pmu(S, vcpu):
        pmu.incremented_pmc_idx |= pmc_bit(i)
        kvm_make_request(S, E, vcpu, KVM_REQ_PMU)
    else:
        kvm_pmu_request_counter_reprogram(S, E, vcpu, i)


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
def get_msr(S, E, vcpu, which):
    """A register of the guest's PMU; `which` is from kvm_pmu_is_valid_msr()."""
    if _owns_pmu(S, vcpu):
        return pmu_passthrough.kvm_pmu_get_msr(S, E, vcpu, which)
    return pmu_emulated.kvm_pmu_get_msr(S, E, vcpu, which)


@jit()
def set_msr(S, E, vcpu, which, data, host_initiated):
    """Write one; 1 means #GP."""
    if _owns_pmu(S, vcpu):
        return pmu_passthrough.kvm_pmu_set_msr(S, E, vcpu, which, data, host_initiated)
    return pmu_emulated.kvm_pmu_set_msr(S, E, vcpu, which, data, host_initiated)


@jit()
def _is_counter(which):
    kind = which & _KIND
    return kind == PMU_PERFCTR or kind == PMU_PMC or kind == PMU_FIXED_CTR


@jit()
def peek_msr(S, E, vcpu, which):
    """What get_msr() would give; it takes no time and changes nothing."""
    if not _owns_pmu(S, vcpu) and _is_counter(which):
        return pmu_emulated.pmc_counter_now(S, vcpu, which & 15)
    return get_msr(S, E, vcpu, which)


@jit()
def rdpmc(S, E, vcpu, i):
    """The value of pmc i for an RDPMC that exits."""
    if _owns_pmu(S, vcpu):
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
def host_set_msr(S, E, index, value):
    """The VMM writes one; 1 if it is refused."""
    vcpu = kvm_get_running_vcpu(S)
    which = kvm_pmu_is_valid_msr(vcpu.pmu, index)
    if which < 0:
        if not is_lbr_msr(S, vcpu, index):
            return 1
        lbr.intel_pmu_handle_lbr_msrs_access(S, E, vcpu, index, value, 1)
        return 0
    fault = set_msr(S, E, vcpu, which, value, 1)
    if _owns_pmu(S, vcpu) and _is_counter(which):
        vcpu.pmu.pmcs[which & 15].emulated_counter = ZERO
    return fault
