"""PEBS of a guest: what VM entry and exit switch so that hardware writes its records to the guest's memory.

A record names hardware's counter. So a guest counter gets records only while the counter behind it has its
own number, and a PEBS guest's counters behind other numbers stand still. arch/x86/kvm/vmx/vmx.c,
pmu_intel.c; arch/x86/events/intel/core.c: intel_guest_get_msrs().
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.linux.kvm.pmu import pmc_is_locally_enabled
from vpmu_emu.linux.kvm.vmx.msr_lists import add_atomic_switch_msr
from vpmu_emu.linux.native import wrmsrl
from vpmu_emu.linux.overflow_handler import pmc_bit
from vpmu_emu.linux.percpu import this_core, this_cpu
from vpmu_emu.linux.state import N_PMC
from vpmu_emu.machine import msr_index
from vpmu_emu.machine.u64 import ZERO


@jit()
def intel_pmu_cross_mapped_check(S, vcpu):
    """Note the hardware counters that have an event of a guest counter of another number."""
    pmu = vcpu.pmu
    pmu.host_cross_mapped_mask = ZERO
    if pmu.pebs_enable & pmu.global_ctrl == ZERO:
        return
    for i in range(N_PMC):
        event = pmu.pmcs[i].perf_event
        if event < 0 or pmu.global_ctrl & pmc_bit(i) == ZERO or not pmc_is_locally_enabled(pmu, i):
            continue
        idx = S.perf_events[event].idx
        if idx >= 0 and idx != i:
            pmu.host_cross_mapped_mask |= pmc_bit(idx)


@jit()
def switch_pebs_msrs(S, M, E, vcpu, n):
    """DS_AREA and PEBS_ENABLE from entry n of the lists on: (entries, guest's GLOBAL_CTRL).

    The host has no debug store: its own events write no records.
    """
    host = this_cpu(S)
    pmu = vcpu.pmu
    guest = host.intel_ctrl & ~host.intel_ctrl_host_mask & ~host.pebs_enabled
    if this_core(S).pmu.perf_capabilities & msr_index.PERF_CAP_PEBS_FORMAT == ZERO:
        return n, guest
    intel_pmu_cross_mapped_check(S, vcpu)
    n = add_atomic_switch_msr(M, vcpu, n, msr_index.MSR_IA32_DS_AREA, ZERO, pmu.ds_area)
    pebs_host = host.pebs_enabled & ~host.intel_ctrl_guest_mask
    pebs = ZERO
    if pebs_host == ZERO:
        pebs = host.pebs_enabled & ~host.intel_ctrl_host_mask & pmu.pebs_enable
        pebs &= ~pmu.host_cross_mapped_mask
        guest = (guest & ~pmu.host_cross_mapped_mask) | pebs
    if pebs != pebs_host:
        # a record that is being written must be done before the guest's address space is there
        wrmsrl(S, E, msr_index.MSR_IA32_PEBS_ENABLE, ZERO)
    return add_atomic_switch_msr(M, vcpu, n, msr_index.MSR_IA32_PEBS_ENABLE, pebs_host, pebs), guest
