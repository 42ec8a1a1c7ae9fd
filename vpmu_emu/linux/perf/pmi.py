"""The overflow interrupt of the host: an NMI, which alone may come while perf itself is at work.

arch/x86/events/core.c, intel/core.c; throttling in kernel/events/core.c.
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.linux.hrtimer import host_timer_program
from vpmu_emu.linux.kvm.overflow import kvm_perf_overflow
from vpmu_emu.linux.native import APIC_DM_NMI, MSR_APIC_LVTPC, cost, rdmsrl, retire, wrmsrl
from vpmu_emu.linux.perf.sched import perf_rotate_context
from vpmu_emu.linux.perf.x86 import (
    MSR_CORE_PERF_GLOBAL_CTRL,
    MSR_CORE_PERF_GLOBAL_OVF_CTRL,
    MSR_CORE_PERF_GLOBAL_STATUS,
    MSR_P6_EVNTSEL0,
    THROTTLED,
    counter_bit,
    ctx_is_active,
    intel_pmu_enable_all,
    perf_pmu_disable,
    perf_pmu_enable,
    x86_perf_event_set_period,
    x86_perf_event_update,
    x86_pmu_start,
    x86_pmu_stop,
)
from vpmu_emu.linux.state import OWNER_KVM, PERF_EVENT_STATE_ACTIVE, W_FORBID_NMI
from vpmu_emu.linux.trace_kinds import TR_NMI_HANDLER
from vpmu_emu.linux.watchdog import (
    hardlockup_detector_nmi_handler,
    watchdog_overflow_callback,
)
from vpmu_emu.machine.ring import emit
from vpmu_emu.machine.state import N_CTR, N_GP, NEVER
from vpmu_emu.machine.u64 import ONE, U64, ZERO

COST_NMI_ENTRY = cost("nmi_entry")
COST_NMI_HANDLER = cost("perf_event_nmi_handler")
COST_KVM_OVERFLOW = cost("kvm_perf_overflow")
COST_IRQ_ENTRY = cost("irq_entry")

MOST_LOOPS = 100


@jit()
def perf_event_overflow(S, E, i):
    """Event i has ended a period: 1 if it fires too often and must stop until the next tick."""
    host = S.percpu[S.this_cpu]
    event = S.perf_events[i]
    if event.sample_period == ZERO:
        return 0
    if event.watchdog != 0:  # never throttled
        event.samples += ONE
        watchdog_overflow_callback(S, E)
        return 0
    throttle = 0
    # perf_throttled_seq: the number of ticks so far
    seq = S.cores[S.this_cpu].t // S.config.tick_interval
    if seq != event.interrupts_seq:
        event.interrupts_seq = seq
        event.interrupts = 1
    else:
        event.interrupts += 1
        if event.interrupts > S.config.max_samples_per_tick:
            event.interrupts = THROTTLED
            host.throttles += ONE
            host.tick_at = (seq + 1) * S.config.tick_interval
            throttle = 1
    event.samples += ONE
    if event.owner == OWNER_KVM:
        retire(S, E, COST_KVM_OVERFLOW)
        kvm_perf_overflow(S, E, event.pmc)
    return throttle


@jit()
def perf_event_nmi_handler(S, E):
    """intel_pmu_handle_irq(): acknowledge every overflow, restart its period, tell its owner."""
    host = S.percpu[S.this_cpu]
    host.nmis += ONE
    retire(S, E, COST_NMI_ENTRY)
    hardlockup_detector_nmi_handler(S, E)
    if host.force_exclude_guest != 0 and S.config.without & W_FORBID_NMI == ZERO:
        # Patch 09: what overflowed is the guest's.
        emit(E, S.cores[S.this_cpu].t, TR_NMI_HANDLER, ZERO, ZERO, ONE, ZERO)
        return
    retire(S, E, COST_NMI_HANDLER)
    was_enabled = host.enabled
    host.enabled = 0
    wrmsrl(S, E, MSR_CORE_PERF_GLOBAL_CTRL, ZERO)
    status = rdmsrl(S, E, MSR_CORE_PERF_GLOBAL_STATUS)
    emit(E, S.cores[S.this_cpu].t, TR_NMI_HANDLER, ZERO, status, ZERO, ZERO)
    loops = 0
    while status != ZERO:
        loops += 1
        if loops > MOST_LOOPS:
            # "perfevents: irq loop stuck!", by a status that does not clear: intel_pmu_reset().
            for idx in range(N_GP):
                if host.events[idx] >= 0:
                    wrmsrl(S, E, MSR_P6_EVNTSEL0 + U64(idx), ZERO)
            break
        wrmsrl(S, E, MSR_CORE_PERF_GLOBAL_OVF_CTRL, status)
        for idx in range(N_CTR):
            i = host.events[idx]
            if status & counter_bit(idx) == ZERO or i < 0:
                continue
            x86_perf_event_update(S, E, i)
            if x86_perf_event_set_period(S, E, i) != 0 and perf_event_overflow(S, E, i) != 0:
                x86_pmu_stop(S, E, i, 0)
        status = rdmsrl(S, E, MSR_CORE_PERF_GLOBAL_STATUS)
    host.enabled = was_enabled
    if was_enabled != 0:
        intel_pmu_enable_all(S, E)
    host_timer_program(S, E)  # a throttled event needs the next tick
    # Since Haswell the entry is unmasked last, after every counter has a new period.
    wrmsrl(S, E, MSR_APIC_LVTPC, APIC_DM_NMI)


@jit()
def handle_nmis(S, E):
    """Take the NMIs that are due; inside a handler further ones wait for its end."""
    core = S.cores[S.this_cpu]
    host = S.percpu[S.this_cpu]
    while (core.nmi_pending != 0 or core.nmi_at <= core.t) and host.in_nmi == 0:
        core.nmi_pending = 0
        host.in_nmi = 1
        perf_event_nmi_handler(S, E)
        host.in_nmi = 0


@jit()
def charge(S, E, row):
    """Retire one row of work of the host kernel, and take the NMI that it may have raised."""
    retire(S, E, row)
    handle_nmis(S, E)


@jit()
def perf_mux_hrtimer_handler(S, E):
    """The multiplexing timer: rotate, and come again as long as somebody waits."""
    host = S.percpu[S.this_cpu]
    host.mux_at = NEVER
    if perf_rotate_context(S, E) != 0:
        host.mux_at = S.cores[S.this_cpu].t + S.config.mux_interval


@jit()
def perf_event_task_tick(S, E):
    """perf_adjust_freq_unthr_context(): the end of throttling."""
    perf_pmu_disable(S, E)
    for i in range(S.perf_rows):
        event = S.perf_events[i]
        if event.used != 0 and event.interrupts == THROTTLED and ctx_is_active(S, event.ctx):
            event.interrupts = 0
            if event.state == PERF_EVENT_STATE_ACTIVE:
                x86_pmu_start(S, E, i, 0)
    perf_pmu_enable(S, E)
