"""The overflow interrupt of the host: an NMI, which alone may come while perf itself is at work.

arch/x86/events/core.c, intel/core.c; throttling in kernel/events/core.c.
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.linux import patches
from vpmu_emu.linux.hrtimer import host_timer_program
from vpmu_emu.linux.native import cost, rdmsrl, retire_work, wrmsrl
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
)
from vpmu_emu.linux.trace_kinds import TR_NMI_HANDLER
from vpmu_emu.linux.watchdog import hardlockup_detector_nmi_handler
from vpmu_emu.machine import msr_index
from vpmu_emu.machine.ring import emit
from vpmu_emu.machine.state import N_CTR, N_GP
from vpmu_emu.machine.u64 import ONE, U64, ZERO

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
def perf_event_nmi_handler(S, E):
    """intel_pmu_handle_irq(): acknowledge every overflow, restart its period, tell its owner."""
    host = this_cpu(S)
    host.nmis += ONE
    host.interrupted_row = host.row
    retire_work(S, E, COST_NMI_ENTRY)
    known = hardlockup_detector_nmi_handler(S, E)
    if host.force_exclude_guest != 0 and not lacks(S, patches.NMI_HANDLER):
        # Patch 09: what overflowed is the guest's.
        emit(E, this_core(S).t, TR_NMI_HANDLER, ZERO, ZERO, ONE, ZERO)
        if not known:
            printk(S, LOG_UNKNOWN_NMI, ZERO)
        return
    if host.guest_lvtpc_loaded != 0:  # as merged
        emit(E, this_core(S).t, TR_NMI_HANDLER, ZERO, ZERO, ONE, ZERO)
        return
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
        wrmsrl(S, E, msr_index.MSR_CORE_PERF_GLOBAL_OVF_CTRL, status)
        if status & msr_index.GLOBAL_STATUS_BUFFER_OVF != ZERO:
            x86_pmu_handle_guest_pebs(S, E)
        if status & msr_index.GLOBAL_STATUS_PERF_METRICS_OVF != ZERO:
            intel_update_topdown_event(S, E, -1)
        for idx in range(N_CTR):
            i = host.events[idx]
            if status & counter_bit(idx) == ZERO or i < 0:
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
    host.enabled = was_enabled
    if was_enabled != 0:
        intel_pmu_enable_all(S, E)
    host_timer_program(S, E)  # a throttled event needs the next tick
    perf_sample_event_took(S, this_core(S).t - start)


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
        perf_event_nmi_handler(S, E)
        host.switching = switching
        host.in_nmi = 0
        host.interrupted = FROM_KERNEL
    if host.pending_disable != 0 and host.in_nmi == 0 and host.disable_count == 0:
        perf_pending_disable(S, E)
