"""The overflow interrupt of the host: an NMI, which alone may come while perf itself is at work.

arch/x86/kernel/nmi.c, arch/x86/events/core.c, intel/core.c; throttling in kernel/events/core.c.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.linux import patches
from vpmu_emu.linux.hrtimer import host_timer_program
from vpmu_emu.linux.native import cost, rdmsrl, retire_work, wrmsrl
from vpmu_emu.linux.overflow_handler import kvm_make_request
from vpmu_emu.linux.patches import lacks
from vpmu_emu.linux.percpu import this_core, this_cpu
from vpmu_emu.linux.perf.event import perf_event_disable
from vpmu_emu.linux.perf.overflow import perf_event_overflow
from vpmu_emu.linux.perf.throttle import (
    perf_sample_event_took,
)
from vpmu_emu.linux.perf.times import ctx_cpu
from vpmu_emu.linux.perf.x86 import (
    counter_bit,
    intel_pmu_enable_all,
    intel_update_topdown_event,
    x86_perf_event_set_period,
    x86_perf_event_update,
    x86_pmu_stop,
)
from vpmu_emu.linux.printk import LOG_UNKNOWN_NMI, printk
from vpmu_emu.linux.state import (
    FROM_GUEST,
    FROM_KERNEL,
    HOSTS,
    KVM_REQ_PMI,
    OWNER_KVM,
    PMI_VECTOR_NMI,
)
from vpmu_emu.linux.trace_kinds import TR_NMI_HANDLER
from vpmu_emu.linux.watchdog import hardlockup_detector_nmi_handler
from vpmu_emu.machine import msr_index
from vpmu_emu.machine.bits import popcount
from vpmu_emu.machine.pmu import pmi_served, pmi_taken
from vpmu_emu.machine.ring import emit
from vpmu_emu.machine.state import N_CTR, N_GP, PMI_NMI
from vpmu_emu.machine.u64 import LOW32, ONE, U2, U32, U64, ZERO

COST_NMI_ENTRY = cost("nmi_entry")
COST_NMI_HANDLER = cost("perf_event_nmi_handler")
COST_IRQ_ENTRY = cost("irq_entry")

MOST_LOOPS = 100


@jit()
def x86_pmu_handle_guest_pebs(S, E):
    """A debug store is full, and only guests have one: the first of their events has overflowed, say."""
    host = this_cpu(S)
    if host.interrupted != FROM_GUEST:
        return
    mine = host.pebs_enabled & ~host.intel_ctrl_host_mask
    for idx in range(N_CTR):
        i = host.events[idx]
        if mine & counter_bit(idx) != ZERO and i >= 0:
            if perf_event_overflow(S, E, i, 1) != 0:
                x86_pmu_stop(S, E, i, 0)
            return  # one is enough: KVM only passes the interrupt on


@jit()
def vcpu_bit(vcpu):
    """Of `core.pmu.whose`: the counters of vCPU number `vcpu` (int64, -1 none)."""
    return U2 << U64(vcpu) if vcpu >= 0 else ZERO


@jit()
def account_pmi(S, whose, side):
    """An interrupt of the counters of `whose` (core.pmu.whose) goes to `side`, ZERO if to nobody."""
    host = this_cpu(S)
    if whose & side == ZERO and whose & LOW32 != ZERO and side != ZERO:
        host.pmis_misattributed += ONE
    if whose >> U32 & ~side != ZERO:
        host.pmis_lost += ONE


@jit()
def _guest_has_the_pmu(S):
    # As the handler can tell: by the flag of the series (patch 09), or as merged by that of LVTPC.
    host = this_cpu(S)
    return host.guest_lvtpc_loaded != 0 or (
        host.force_exclude_guest != 0 and not lacks(S, patches.NMI_HANDLER)
    )


@jit()
def _handle_guest_pmi(S, E, whose):
    # Without a vector of its own (--pmi-vector nmi) GLOBAL_STATUS decides, the guest's while its context is
    # in: bits that the guest leaves there claim any NMI, and what it has cleared already claims none.
    host = this_cpu(S)
    S.vcpus[host.vcpu].pmu.lvtpc_masked = msr_index.APIC_LVT_MASKED  # by the local APIC, whoever claims it
    status = rdmsrl(S, E, msr_index.MSR_CORE_PERF_GLOBAL_STATUS)
    emit(E, this_core(S).t, TR_NMI_HANDLER, ZERO, status, ONE, ZERO)
    guests = vcpu_bit(host.vcpu)
    if status == ZERO:
        account_pmi(S, whose, ZERO)
        return 0
    account_pmi(S, whose, guests)
    kvm_make_request(S, E, S.vcpus[host.vcpu], KVM_REQ_PMI)
    pmi_served(this_core(S), guests)
    return 1


@jit()
def _overflowed_and_gone(S, idx):
    # Its event was stopped before the interrupt came. Of a guest's counter nobody makes up for it:
    # pmc_pause_counter() takes the count in, and leaves overflows of perf's part to perf.
    i = this_cpu(S).last_event[idx]
    if i >= 0 and S.perf_events[i].owner == OWNER_KVM:
        this_cpu(S).pmis_lost += ONE


@jit()
def perf_event_nmi_handler(S, E, whose):
    """intel_pmu_handle_irq(): acknowledge every overflow, restart its period, tell its owner.

    How many there were. `whose` (U64) the interrupt is no kernel knows; it is for numbers of reports.
    """
    host = this_cpu(S)
    if _guest_has_the_pmu(S):
        if S.config.pmi_vector == PMI_VECTOR_NMI:
            return _handle_guest_pmi(S, E, whose)
        # The guest's PMIs have a vector of their own: NMIs are not the PMU's.
        emit(E, this_core(S).t, TR_NMI_HANDLER, ZERO, ZERO, ONE, ZERO)
        account_pmi(S, whose, ZERO)
        return 0
    account_pmi(S, whose, HOSTS)
    handled = 0
    start = this_core(S).t
    retire_work(S, E, COST_NMI_HANDLER)
    was_enabled = host.enabled
    host.enabled = 0
    wrmsrl(S, E, msr_index.MSR_CORE_PERF_GLOBAL_CTRL, ZERO)
    status = rdmsrl(S, E, msr_index.MSR_CORE_PERF_GLOBAL_STATUS)
    emit(E, this_core(S).t, TR_NMI_HANDLER, ZERO, status, ZERO, ZERO)
    loops = 0
    while status != ZERO:
        loops += 1
        if loops > MOST_LOOPS:
            # "perfevents: irq loop stuck!", by a status that does not clear: intel_pmu_reset().
            for idx in range(N_GP):
                if host.events[idx] >= 0:
                    wrmsrl(S, E, msr_index.MSR_P6_EVNTSEL0 + U64(idx), ZERO)
            break
        handled += np.int64(popcount(status))
        wrmsrl(S, E, msr_index.MSR_CORE_PERF_GLOBAL_OVF_CTRL, status)
        if status & msr_index.GLOBAL_STATUS_BUFFER_OVF != ZERO:
            x86_pmu_handle_guest_pebs(S, E)
        if status & msr_index.GLOBAL_STATUS_PERF_METRICS_OVF != ZERO:
            intel_update_topdown_event(S, E, -1)
        for idx in range(N_CTR):
            i = host.events[idx]
            if status & counter_bit(idx) == ZERO:
                continue
            if i < 0:
                _overflowed_and_gone(S, idx)
                continue
            x86_perf_event_update(S, E, i)
            if x86_perf_event_set_period(S, E, i) != 0 and (
                perf_event_overflow(S, E, i, 1) != 0
            ):
                x86_pmu_stop(S, E, i, 0)
        status = rdmsrl(S, E, msr_index.MSR_CORE_PERF_GLOBAL_STATUS)
    # x86_pmu.mid_ack: unmasked after every counter has a new period, and before any counts. Unmasked last
    # (late_ack), an event with a period of a few instructions would overflow in this handler's own: our
    # silicon sends a PMI at the overflow and never again, so that event would count on in silence.
    wrmsrl(S, E, msr_index.IA32_X2APIC_LVT_PMI, msr_index.APIC_DM_NMI)
    pmi_served(this_core(S), HOSTS)
    host.enabled = was_enabled
    if was_enabled != 0:
        intel_pmu_enable_all(S, E)
    host_timer_program(S, E)  # a throttled event needs the next tick
    perf_sample_event_took(S, this_core(S).t - start)
    return handled


@jit()
def default_do_nmi(S, E):
    """Every handler is asked, and an NMI that nobody claims is told.

    Where the one before had several causes, one right behind it may be of a cause that is served already.
    """
    host = this_cpu(S)
    core = this_core(S)
    whose = pmi_taken(core, PMI_NMI)
    host.nmis += ONE
    host.interrupted_row = host.row
    if core.t != host.nmi_over:
        host.swallow_nmi = 0
    retire_work(S, E, COST_NMI_ENTRY)
    handled = 1 if hardlockup_detector_nmi_handler(S, E) else 0
    handled += perf_event_nmi_handler(S, E, whose)
    if handled == 0 and host.swallow_nmi == 0:
        host.nmis_unclaimed += ONE
        printk(S, LOG_UNKNOWN_NMI, ZERO)
    if handled > 1:
        host.swallow_nmi = 1
    host.nmi_over = core.t


@jit()
def perf_pending_disable(S, E):
    """perf_pending_irq(): disable the events that have reached their limit."""
    this_cpu(S).pending_disable = 0
    for i in range(S.perf_rows):
        event = S.perf_events[i]
        if event.used != 0 and event.event_limit < 0 and ctx_cpu(S, event.ctx) == S.this_cpu:
            event.event_limit = 0
            perf_event_disable(S, E, i)


@jit()
def nmi_work(S):
    """Whether handle_nmis() may have something to do: asked at every piece of work, it mostly has not."""
    core = this_core(S)
    return core.nmi_pending != 0 or core.nmi_at <= core.t or this_cpu(S).pending_disable != 0


@jit()
def handle_nmis(S, E):
    """Take the NMIs that are due; inside a handler further ones wait for its end."""
    core = this_core(S)
    host = this_cpu(S)
    while (core.nmi_pending != 0 or core.nmi_at <= core.t) and host.in_nmi == 0:
        core.nmi_pending = 0
        host.in_nmi = 1
        switching = host.switching  # what the handler does is no part of it
        host.switching = 0
        default_do_nmi(S, E)
        host.switching = switching
        host.in_nmi = 0
        host.interrupted = FROM_KERNEL
    if host.pending_disable != 0 and host.in_nmi == 0 and host.disable_count == 0:
        perf_pending_disable(S, E)
