"""A guest's branch records where perf owns the PMU: an event without a counter keeps hardware's for it.

While the event is ACTIVE the registers are the guest's own, through KVM at first and past it from the next
entry on; otherwise they read 0. Recording itself is hardware's: DEBUGCTL is switched by the VMCS, and the
records go where the vCPU's thread goes. arch/x86/kvm/vmx/pmu_intel.c.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.linux.charge import charge
from vpmu_emu.linux.kvm.msrfilter import kvm_msr_allowed
from vpmu_emu.linux.kvm.pmu import intel_pmu_lbr_is_enabled
from vpmu_emu.linux.native import cost, rdmsrl, wrmsrl
from vpmu_emu.linux.percpu import this_core, this_cpu
from vpmu_emu.linux.perf.event import (
    ATTR_BRANCH_STACK,
    ATTR_EXCLUDE_HOST,
    ATTR_PINNED,
    perf_event_create_kernel_counter,
    perf_event_release_kernel,
)
from vpmu_emu.linux.perf.x86 import INTEL_FIXED_VLBR_EVENT
from vpmu_emu.linux.printk import LOG_NO_LBR, printk
from vpmu_emu.linux.state import CTX_TASK, OWNER_KVM, PERF_EVENT_STATE_ACTIVE
from vpmu_emu.machine import msr_index
from vpmu_emu.machine.lbr import R_LASTBRANCH_INFO, R_LBR_SELECT
from vpmu_emu.machine.msr import check_write, find_msr, msr_value
from vpmu_emu.machine.physical import st8
from vpmu_emu.machine.u64 import BYTE, ONE, U3, U64, ZERO
from vpmu_emu.machine.vmcs import V_DEBUGCTL, vmread, vmwrite
from vpmu_emu.machine.vmx import BITMAP_WRITE
from vpmu_emu.tables.passed import VPMUS, Met, passed_msrs

COST_CREATE = cost("perf_event_create_kernel_counter")
COST_RELEASE = cost("perf_event_release_kernel")
INTEL_PMC_IDX_FIXED_VLBR = ONE << U64(58)  # in pmc_in_use
_ALWAYS, _WITH_EVENT = (passed_msrs(VPMUS[0], Met(lbr_active=active)) for active in (False, True))
_MSRS = np.array([row[0] for row in _WITH_EVENT if row not in _ALWAYS], dtype=np.uint64)
_SEVEN = U64(7)


@jit()
def intel_pmu_is_valid_lbr_msr(vcpu, index):
    """Whether `index` is an LBR register that the guest has."""
    rn = find_msr(index)
    if rn < 0 or rn >> 6 < R_LBR_SELECT or rn >> 6 > R_LASTBRANCH_INFO:
        return False
    return rn & 63 < vcpu.msr_n[rn >> 6]


@jit()
def intel_pmu_create_guest_lbr_event(S, E, vcpu):
    """Ask perf for the records, for this thread and pinned; 0 or a negative errno."""
    pmu = vcpu.pmu
    if pmu.lbr_event < 0:
        event = perf_event_create_kernel_counter(
            S,
            E,
            CTX_TASK + this_cpu(S).curr,  # its VMM's thread too, outside of KVM_RUN
            ATTR_PINNED | ATTR_EXCLUDE_HOST | ATTR_BRANCH_STACK,
            INTEL_FIXED_VLBR_EVENT,
            ZERO,
            OWNER_KVM,
            vcpu.vcpu_idx,
            -1,
        )
        charge(S, E, COST_CREATE)
        if event < 0:
            return event
        pmu.lbr_event = event
        pmu.event_count += 1
        pmu.created += ONE
    pmu.pmc_in_use |= INTEL_PMC_IDX_FIXED_VLBR
    return 0


@jit()
def intel_pmu_release_guest_lbr_event(S, E, vcpu):
    """Give the records back."""
    pmu = vcpu.pmu
    if pmu.lbr_event >= 0:
        perf_event_release_kernel(S, E, pmu.lbr_event)
        charge(S, E, COST_RELEASE)
        pmu.lbr_event = -1
        pmu.event_count -= 1
        pmu.released += ONE


@jit()
def intel_pmu_handle_lbr_msrs_access(S, E, vcpu, index, value, writes):
    """RDMSR or WRMSR of an LBR register that exits: what was read, 0 if the records are somebody else's."""
    core = this_core(S)
    pmu = vcpu.pmu
    if pmu.lbr_event < 0 and intel_pmu_create_guest_lbr_event(S, E, vcpu) < 0:
        return ZERO
    if S.perf_events[pmu.lbr_event].state != PERF_EVENT_STATE_ACTIVE:
        pmu.pmc_in_use &= ~INTEL_PMC_IDX_FIXED_VLBR
        return ZERO
    pmu.pmc_in_use |= INTEL_PMC_IDX_FIXED_VLBR
    if writes == 0:
        return rdmsrl(S, E, index)
    # KVM writes what the guest says without a look: hardware's #GP is caught in the host, with a warning.
    if check_write(core, index, value) >= 0:
        wrmsrl(S, E, index, value)
    return ZERO


@jit()
def intel_pmu_lbr_msr_now(S, vcpu, index):
    """What RDMSR of an LBR register would give; nothing follows from looking."""
    core = this_core(S)
    i = vcpu.pmu.lbr_event
    if i < 0 or S.perf_events[i].state != PERF_EVENT_STATE_ACTIVE:
        return ZERO
    return msr_value(core, find_msr(index), index)


@jit()
def intel_pmu_debugctl_written(S, E, vcpu, value):
    """After a WRMSR of DEBUGCTL that did not fault."""
    if (
        intel_pmu_lbr_is_enabled(vcpu)
        and vcpu.pmu.lbr_event < 0
        and value & msr_index.DEBUGCTLMSR_LBR != ZERO
    ):
        intel_pmu_create_guest_lbr_event(S, E, vcpu)


@jit()
def _set_intercept(S, M, vcpu, index, intercept):
    for writes in range(2):
        passes = intercept == 0 and kvm_msr_allowed(S, M, vcpu, index, writes)
        at = U64(vcpu.msr_bitmap) + (index >> U3) + (BITMAP_WRITE if writes != 0 else ZERO)
        bit = ONE << (index & _SEVEN)
        byte = U64(M[at]) | bit
        st8(M, at, byte & ~bit & BYTE if passes else byte)


@jit()
def vmx_update_intercept_for_lbr_msrs(S, M, vcpu, intercept):
    """Have every access to an LBR register exit (1), or none that the VM's MSR filter allows (0)."""
    if vcpu.pmu.lbr_passthrough == 1 - intercept:
        return
    vcpu.pmu.lbr_passthrough = 1 - intercept
    for k in range(len(_MSRS)):
        _set_intercept(S, M, vcpu, _MSRS[k], intercept)


@jit()
def vmx_passthrough_lbr_msrs(S, M, vcpu):
    """Right before an entry: the registers pass while the event has the records."""
    core = this_core(S)
    if not intel_pmu_lbr_is_enabled(vcpu):
        return
    pmu = vcpu.pmu
    if pmu.lbr_event >= 0 and S.perf_events[pmu.lbr_event].state >= PERF_EVENT_STATE_ACTIVE:
        vmx_update_intercept_for_lbr_msrs(S, M, vcpu, 0)
        return
    vmx_update_intercept_for_lbr_msrs(S, M, vcpu, 1)
    wanted = vmread(core, M, V_DEBUGCTL) & msr_index.DEBUGCTLMSR_LBR != ZERO
    if pmu.lbr_event >= 0 or wanted or pmu.pmc_in_use & INTEL_PMC_IDX_FIXED_VLBR != ZERO:
        pmu.lbr_warnings += ONE
        printk(S, LOG_NO_LBR, U64(vcpu.vcpu_id))
    if pmu.lbr_event >= 0:
        pmu.pmc_in_use &= ~INTEL_PMC_IDX_FIXED_VLBR


@jit()
def intel_pmu_deliver_pmi(S, M, vcpu):
    """Before the guest's PMI: FREEZE_LBRS_ON_PMI as versions 2 and 3 do it."""
    core = this_core(S)
    if not intel_pmu_lbr_is_enabled(vcpu) or vcpu.pmu.version < 2 or vcpu.pmu.version > 3:
        return
    debugctl = vmread(core, M, V_DEBUGCTL)
    if debugctl & msr_index.DEBUGCTLMSR_FREEZE_LBRS_ON_PMI != ZERO:
        vmwrite(core, M, V_DEBUGCTL, debugctl & ~msr_index.DEBUGCTLMSR_LBR)


@jit()
def intel_pmu_cleanup(S, M, E, vcpu):
    """Once in a time slice: the records go back if the guest does not record now."""
    if vmread(this_core(S), M, V_DEBUGCTL) & msr_index.DEBUGCTLMSR_LBR == ZERO:
        intel_pmu_release_guest_lbr_event(S, E, vcpu)
