"""The overflow handler that KVM gives to its perf events: it runs in NMI context and only leaves notes.

arch/x86/kvm/pmu.c.
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.linux.percpu import this_core
from vpmu_emu.linux.state import KVM_REQ_PMI, KVM_REQ_PMU, N_GP_PMC
from vpmu_emu.linux.trace_kinds import TR_REQUEST
from vpmu_emu.machine import msr_index
from vpmu_emu.machine.pmu_rules import raises_pmi, sets_status
from vpmu_emu.machine.ring import emit
from vpmu_emu.machine.u64 import ONE, U64, ZERO


@jit(inline=True)
def pmc_bit(i):
    """Bit of pmc i in GLOBAL_CTRL and in KVM's bitmaps: fixed counter j is 32 + j."""
    return ONE << U64(i if i < N_GP_PMC else i + 24)


@jit()
def kvm_make_request(S, E, vcpu, request):
    """Ask for work at the next entry."""
    emit(E, this_core(S).t, TR_REQUEST, ZERO, request, vcpu.requests, ZERO)
    vcpu.requests |= request


@jit()
def __kvm_perf_overflow(S, E, vcpu, i, in_pmi):
    pmu = vcpu.pmu
    core = this_core(S)
    event = pmu.pmcs[i].perf_event
    skip_pmi = False
    if event >= 0 and S.perf_events[event].precise_ip != 0:
        # Only hardware writes records: where KVM counted there is none, and nothing to interrupt for.
        skip_pmi = in_pmi == 0 or pmu.global_status & msr_index.GLOBAL_STATUS_BUFFER_OVF != ZERO
        if in_pmi != 0:
            pmu.global_status |= msr_index.GLOBAL_STATUS_BUFFER_OVF
    elif sets_status(core, i):
        pmu.global_status |= pmc_bit(i)
    if not skip_pmi and raises_pmi(core, i, pmu.pmcs[i].intr != 0):
        kvm_make_request(S, E, vcpu, KVM_REQ_PMI)


@jit()
def kvm_perf_overflow(S, E, vcpu, i):
    """The event behind pmc i of a vCPU, not always of the one that is loaded, has ended a period."""
    pmu = vcpu.pmu
    # A bit that is set already means that the guest is changing this counter: the overflow is stale.
    if pmu.reprogram_pmi & pmc_bit(i) != ZERO:
        return
    pmu.reprogram_pmi |= pmc_bit(i)
    __kvm_perf_overflow(S, E, vcpu, i, 1)
    kvm_make_request(S, E, vcpu, KVM_REQ_PMU)
