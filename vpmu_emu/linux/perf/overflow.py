"""An event has ended a period: its owner is told, its rate is limited, its frequency is kept.

kernel/events/core.c. Whole numbers only: what Linux shifts away so that 64 bits suffice is shifted here.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.linux.native import cost, retire_work
from vpmu_emu.linux.overflow_handler import kvm_perf_overflow
from vpmu_emu.linux.percpu import this_core, this_cpu
from vpmu_emu.linux.perf.clocks import pmu_of
from vpmu_emu.linux.perf.output import perf_event_output
from vpmu_emu.linux.perf.throttle import perf_event_throttle_group
from vpmu_emu.linux.perf.times import sched_clock
from vpmu_emu.linux.perf.x86 import x86_pmu_start, x86_pmu_stop
from vpmu_emu.linux.state import OWNER_KVM, PMU_CORE
from vpmu_emu.linux.watchdog import watchdog_overflow_callback
from vpmu_emu.machine.u64 import ONE, U64, ZERO

COST_OVERFLOW = cost("perf_event_overflow")
COST_KVM_OVERFLOW = cost("kvm_perf_overflow")

NSEC_PER_SEC = U64(1_000_000_000)
_EXACT = U64(1 << 34)  # less than this times NSEC_PER_SEC fits


@jit(inline=True)
def is_sampling_event(event):
    """Whether the event has a period or a frequency."""
    return event.sample_period != ZERO or event.sample_freq != 0


@jit()
def perf_calculate_period(event, nsec, count):
    """The period with which `count` events in `nsec` nanoseconds give attr.sample_freq samples a second."""
    divisor = nsec * U64(event.sample_freq)
    while count >= _EXACT:
        count = count >> ONE
        divisor = divisor >> ONE
    dividend = count * NSEC_PER_SEC
    return dividend if divisor == ZERO else dividend // divisor


@jit()
def perf_adjust_period(S, E, i, nsec, count, disable):
    """Move the period an eighth of the way to what the frequency needs; at least 1.

    `disable` 1: the event runs, and is stopped and started if the new period is far below the rest.
    """
    event = S.perf_events[i]
    running = disable != 0 and pmu_of(event.pmu_type) == PMU_CORE
    now = np.int64(event.period)
    delta = np.int64(perf_calculate_period(event, nsec, count)) - now
    # a quotient towards zero, in C
    delta = (delta + 7) // 8 if delta >= 0 else -((7 - delta) // 8)
    now = max(now + delta, 1)
    event.period = U64(now)
    if event.period_left > 8 * now:
        if running:
            x86_pmu_stop(S, E, i, 1)
        event.period_left = 0
        if running:
            x86_pmu_start(S, E, i, 1)


@jit()
def _account_interrupt(S, E, i, throttle):
    # 1: too many in this tick
    event = S.perf_events[i]
    now = this_core(S).t
    stop = 0
    seq = now // S.config.tick_interval  # perf_throttled_seq
    if seq != event.interrupts_seq:
        event.interrupts_seq = seq
        event.interrupts = 1
    else:
        event.interrupts += 1
    if throttle != 0 and event.interrupts >= S.config.max_samples_per_tick:
        perf_event_throttle_group(S, E, i)
        stop = 1
    if event.sample_freq != 0:
        delta = now - event.freq_time
        event.freq_time = now
        if delta > 15 and delta < 2 * S.config.tick_interval:
            perf_adjust_period(S, E, i, sched_clock(S, delta), event.last_period, 1)
    return stop


@jit()
def perf_event_overflow(S, E, i, throttle):
    """Event i has ended a period: 1 if it fires too often and must stop until the next tick."""
    event = S.perf_events[i]
    if not is_sampling_event(event):
        return 0
    event.samples += ONE
    if event.watchdog != 0:  # never throttled
        watchdog_overflow_callback(S, E)
        return 0
    stop = _account_interrupt(S, E, i, throttle)
    if event.owner == OWNER_KVM:
        retire_work(S, E, COST_KVM_OVERFLOW)
        kvm_perf_overflow(S, E, S.vcpus[event.vcpu], event.pmc)
    else:
        retire_work(S, E, COST_OVERFLOW)
        perf_event_output(S, E, i)
        if event.event_limit > 0:
            event.event_limit -= 1
            if event.event_limit == 0:  # perf_event_disable_inatomic()
                event.event_limit = -1
                this_cpu(S).pending_disable = 1
                stop = 1
    return stop
