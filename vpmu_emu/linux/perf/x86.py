"""The x86 driver: it alone programs counters for perf, as x86_pmu and its Intel part do.

Counter `idx` is 0..7 for GP and 8 + j for fixed counter j; in MSR bit masks fixed j is bit 32 + j. IDX_VLBR
is no counter: an event on it has the branch records.
SDM volume 3, chapter 20; arch/x86/events/core.c and intel/core.c.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.linux.native import rdpmcl, wrmsrl
from vpmu_emu.linux.perf.lbr import (
    PERF_SAMPLE_BRANCH_STACK,
    intel_pmu_lbr_add,
    intel_pmu_lbr_del,
)
from vpmu_emu.linux.perf.userpage import perf_event_update_userpage
from vpmu_emu.linux.state import IDX_VLBR, N_IDX, OWNER_KVM
from vpmu_emu.machine.bits import lowest_bit, popcount
from vpmu_emu.machine.pmu import EV_COUNTERS, EV_FIXED, event_row
from vpmu_emu.machine.state import N_GP
from vpmu_emu.machine.u64 import ALL, ONE, U4, U15, U64, ZERO

MSR_IA32_PMC0 = U64(0x4C1)
MSR_P6_EVNTSEL0 = U64(0x186)
MSR_CORE_PERF_FIXED_CTR0 = U64(0x309)
MSR_CORE_PERF_FIXED_CTR_CTRL = U64(0x38D)
MSR_CORE_PERF_GLOBAL_STATUS = U64(0x38E)
MSR_CORE_PERF_GLOBAL_CTRL = U64(0x38F)
MSR_CORE_PERF_GLOBAL_OVF_CTRL = U64(0x390)
MSR_IA32_PEBS_ENABLE = U64(0x3F1)

EVENTSEL_USR = U64(1 << 16)
EVENTSEL_OS = U64(1 << 17)
EVENTSEL_INT = U64(1 << 20)
EVENTSEL_ENABLE = U64(1 << 22)
EVENTSEL_EVENT = U64(0xFFFF)
X86_RAW_EVENT_MASK = U64(0xFF84FFFF)  # EVENT UMASK EDGE INV CMASK
ICL_EVENTSEL_ADAPTIVE = U64(1 << 34)
CAP_PEBS_BASELINE = U64(1 << 14)
INSTRUCTIONS = U64(0xC0)
INTEL_FIXED_VLBR_EVENT = U64(0x1B00)  # of no counter, and in no list of events
RDPMC_FIXED_BASE = U64(1 << 30)
FIXED_ENABLE_PMI = U64(8)
FIXED_USER = U64(2)
FIXED_KERNEL = U64(1)
FIXED_BITS = U64(0xF)


GP_MASK = U64((1 << N_GP) - 1)
MAX_PERIOD = np.int64((1 << 47) - 1)  # half of a 48-bit counter, as intel_pmu_init() sets it
MIN_PERIOD_PDIST = 128  # glc_limit_period(): of an event with precise_ip 3
NO_ASSIGNMENT = ALL
EINVAL = -22
THROTTLED = -1


@jit(inline=True)
def counter_bit(idx):
    """Bit of counter `idx` in GLOBAL_CTRL and its kin."""
    return ONE << U64(idx if idx < N_GP else idx + 24)


@jit()
def x86_perf_event_update(S, E, i):
    """Add what the counter grew by to event->count, with one RDPMC."""
    event = S.perf_events[i]
    core = S.cores[S.this_cpu]
    idx = event.idx
    if idx == IDX_VLBR:
        return
    if idx < N_GP:
        raw = rdpmcl(S, E, U64(idx))
        mask = core.pmu.gp_mask
    else:
        raw = rdpmcl(S, E, RDPMC_FIXED_BASE | U64(idx - N_GP))
        mask = core.pmu.fixed_mask
    delta = (raw - event.prev_count) & mask
    event.prev_count = raw
    event.count += delta
    event.period_left -= np.int64(delta)


@jit()
def x86_perf_event_set_period(S, E, i):
    """Load the counter so that it overflows after period_left events; 1 if a period has just ended."""
    event = S.perf_events[i]
    core = S.cores[S.this_cpu]
    if event.idx == IDX_VLBR:
        return 0
    left = event.period_left
    period = np.int64(event.period)
    ended = 0
    if left <= -period:  # more than a whole period late: start afresh
        left = period
        event.last_period = event.period
        ended = 1
    if left <= 0:
        left += period
        event.last_period = event.period
        ended = 1
    event.period_left = left
    # The driver never programs fewer than 2 events: some counters would hang on 1.
    left = min(max(left, MIN_PERIOD_PDIST if event.precise_ip == 3 else 2), MAX_PERIOD)
    idx = event.idx
    mask = core.pmu.gp_mask if idx < N_GP else core.pmu.fixed_mask
    value = (ZERO - U64(left)) & mask
    event.prev_count = value
    if idx < N_GP:
        wrmsrl(S, E, MSR_IA32_PMC0 + U64(idx), value)
    else:
        wrmsrl(S, E, MSR_CORE_PERF_FIXED_CTR0 + U64(idx - N_GP), value)
    perf_event_update_userpage(S, E, i)
    return ended


@jit()
def _program_pebs(S, E, bit, on):
    # intel_pmu_pebs_enable(), intel_pmu_pebs_disable()
    host = S.percpu[S.this_cpu]
    if on != 0:
        host.pebs_enabled |= bit
    else:
        host.pebs_enabled &= ~bit
        if host.enabled != 0:
            wrmsrl(S, E, MSR_IA32_PEBS_ENABLE, host.pebs_enabled)


@jit()
def _program(S, E, i, on):
    # intel_pmu_enable_event(), intel_pmu_disable_event()
    host = S.percpu[S.this_cpu]
    event = S.perf_events[i]
    idx = event.idx
    bit = counter_bit(idx)
    host.intel_ctrl_guest_mask &= ~bit
    host.intel_ctrl_host_mask &= ~bit
    # Only a guest has a debug store: precise events of the host are sampled by their own interrupt.
    pebs = event.precise_ip != 0 and event.owner == OWNER_KVM
    if pebs:
        _program_pebs(S, E, bit, on)
    if on != 0:
        if event.exclude_host != 0:
            host.intel_ctrl_guest_mask |= bit
        if event.exclude_guest != 0:
            host.intel_ctrl_host_mask |= bit
    if idx == IDX_VLBR:
        return
    if idx < N_GP:
        value = event.config | EVENTSEL_INT
        if event.exclude_user == 0:
            value |= EVENTSEL_USR
        if event.exclude_kernel == 0:
            value |= EVENTSEL_OS
        if pebs:  # what interrupts is the store's threshold
            value &= ~EVENTSEL_INT
            if S.cores[S.this_cpu].pmu.perf_capabilities & CAP_PEBS_BASELINE != ZERO:
                value |= ICL_EVENTSEL_ADAPTIVE
        if on != 0:
            value |= EVENTSEL_ENABLE
        wrmsrl(S, E, MSR_P6_EVNTSEL0 + U64(idx), value)
    else:
        # Only the cached value: intel_pmu_enable_all() writes the register once for all.
        shift = U64(4 * (idx - N_GP))
        field = ZERO
        if on != 0:
            field = FIXED_ENABLE_PMI
            if event.exclude_user == 0:
                field |= FIXED_USER
            if event.exclude_kernel == 0:
                field |= FIXED_KERNEL
        host.fixed_ctrl_val = (host.fixed_ctrl_val & ~(FIXED_BITS << shift)) | (field << shift)


@jit()
def x86_pmu_start(S, E, i, reload):
    """Let a scheduled event count; `reload` 1 loads its period first (PERF_EF_RELOAD)."""
    host = S.percpu[S.this_cpu]
    event = S.perf_events[i]
    if reload != 0:
        x86_perf_event_set_period(S, E, i)
    event.stopped = 0
    event.arch_stopped = 0
    host.events[event.idx] = i
    host.active_mask |= counter_bit(event.idx)
    _program(S, E, i, 1)
    perf_event_update_userpage(S, E, i)


@jit()
def x86_pmu_stop(S, E, i, update):
    """Stop an event that counts; `update` 1 brings its count up to date (PERF_EF_UPDATE)."""
    host = S.percpu[S.this_cpu]
    event = S.perf_events[i]
    idx = event.idx
    if idx < 0 or host.events[idx] != i:
        return
    _program(S, E, i, 0)
    host.active_mask &= ~counter_bit(idx)
    host.events[idx] = -1
    event.stopped = 1
    if update != 0:
        x86_perf_event_update(S, E, i)


@jit()
def perf_pmu_disable(S, E):
    """Stop the PMU as a whole; calls nest."""
    host = S.percpu[S.this_cpu]
    host.disable_count += 1
    if host.disable_count == 1 and host.enabled != 0:
        host.enabled = 0
        wrmsrl(S, E, MSR_CORE_PERF_GLOBAL_CTRL, ZERO)
        if host.pebs_enabled != ZERO:
            wrmsrl(S, E, MSR_IA32_PEBS_ENABLE, ZERO)


@jit()
def intel_pmu_enable_all(S, E):
    """Write FIXED_CTR_CTRL if it changed, then GLOBAL_CTRL without the counters of exclude_host events."""
    host = S.percpu[S.this_cpu]
    if host.fixed_ctrl_val != host.active_fixed_ctrl_val:
        wrmsrl(S, E, MSR_CORE_PERF_FIXED_CTR_CTRL, host.fixed_ctrl_val)
        host.active_fixed_ctrl_val = host.fixed_ctrl_val
    if host.pebs_enabled != ZERO:
        wrmsrl(S, E, MSR_IA32_PEBS_ENABLE, host.pebs_enabled)
    wrmsrl(S, E, MSR_CORE_PERF_GLOBAL_CTRL, host.intel_ctrl & ~host.intel_ctrl_guest_mask)


@jit()
def perf_pmu_enable(S, E):
    """Undo one perf_pmu_disable(); the last one programs what was scheduled meanwhile (x86_pmu_enable)."""
    host = S.percpu[S.this_cpu]
    host.disable_count -= 1
    if host.disable_count != 0 or host.enabled != 0:
        return
    if host.n_added != 0:
        running = host.n_events - host.n_added
        for k in range(running):  # first stop what moves to another counter
            i = host.event_list[k]
            event = S.perf_events[i]
            if event.idx < 0 or (event.idx == host.assign[k] and host.last_event[event.idx] == i):
                continue
            if event.stopped != 0:
                event.arch_stopped = 1
            x86_pmu_stop(S, E, i, 1)
        for k in range(host.n_events):
            i = host.event_list[k]
            event = S.perf_events[i]
            idx = host.assign[k]
            if event.idx != idx or host.last_event[idx] != i:
                event.idx = idx
                host.last_event[idx] = i
            elif k < running:
                continue
            if event.arch_stopped == 0:
                x86_pmu_start(S, E, i, 1)
        host.n_added = 0
    host.enabled = 1
    intel_pmu_enable_all(S, E)


@jit()
def x86_get_event_constraints(core, config):
    """Counters that may count `config`, as bits by `idx`; 0 if this CPU has none."""
    if config == INTEL_FIXED_VLBR_EVENT:
        return ONE << U64(IDX_VLBR)  # intel_vlbr_constraints(), before all others
    gp = (ONE << U64(core.pmu.gp)) - ONE
    fixed = -1
    row = event_row(core.pmu, config & EVENTSEL_EVENT)
    if row >= 0:
        gp &= EV_COUNTERS[row]
        # EDGE, INV and CMASK need a general-purpose counter.
        if config & X86_RAW_EVENT_MASK == config & EVENTSEL_EVENT:
            fixed = EV_FIXED[row]
    if fixed >= 0 and fixed < core.pmu.fixed:
        gp |= ONE << U64(N_GP + fixed)
    return gp


@jit()
def intel_get_event_constraints(core, event):
    """Counters that may count an event, as bits by `idx`: with precise_ip 3 only the most precise one."""
    choice = x86_get_event_constraints(core, event.config)
    if event.precise_ip == 3:
        # PDIR: fixed counter 0 for instructions; PDist: counter 0 for everything else
        choice &= ONE << U64(N_GP) if event.config == INSTRUCTIONS else ONE
    return choice


@jit()
def x86_schedule_events(S, rows, n):
    """Find a counter for each of the events `rows[:n]`.

    Returns 4 bits of `idx` per row, lowest row first, or NO_ASSIGNMENT.
    """
    core = S.cores[S.this_cpu]
    packed = ZERO
    used = ZERO
    k = 0
    while k < n:  # everybody keeps the counter that it had, if that works
        event = S.perf_events[rows[k]]
        if event.idx < 0:
            break
        bit = ONE << U64(event.idx)
        if intel_get_event_constraints(core, event) & bit == ZERO or used & bit != ZERO:
            break
        used |= bit
        packed |= U64(event.idx) << (U64(k) * U4)
        k += 1
    if k == n:
        return packed
    # perf_assign_events(): the least flexible first, fixed counters preferred
    packed = ZERO
    used = ZERO
    placed = 0
    for weight in range(1, N_IDX + 1):
        for j in range(n):
            event = S.perf_events[rows[j]]
            choice = intel_get_event_constraints(core, event)
            if popcount(choice) != U64(weight):
                continue
            free = choice & ~used
            if free & ~GP_MASK != ZERO:
                free &= ~GP_MASK
            idx = lowest_bit(free)
            if idx < 0:
                return NO_ASSIGNMENT
            used |= ONE << U64(idx)
            packed |= U64(idx) << (U64(j) * U4)
            placed += 1
    if placed < n:
        return NO_ASSIGNMENT
    return packed


@jit()
def x86_pmu_add(S, E, i):
    """Take event i into the set that is scheduled; 0, or EINVAL if the counters do not suffice."""
    host = S.percpu[S.this_cpu]
    n = host.n_events
    if n == N_IDX:
        return EINVAL
    host.event_list[n] = i
    packed = x86_schedule_events(S, host.event_list, n + 1)
    if packed == NO_ASSIGNMENT:
        host.event_list[n] = -1
        return EINVAL
    for k in range(n + 1):
        host.assign[k] = np.int64((packed >> (U64(k) * U4)) & U15)
    event = S.perf_events[i]
    event.stopped = 1
    event.arch_stopped = 0
    host.n_events = n + 1
    host.n_added += 1
    if event.sample_type & PERF_SAMPLE_BRANCH_STACK != ZERO:
        intel_pmu_lbr_add(S, E, i)
    return 0


@jit()
def x86_pmu_del(S, E, i):
    """Take event i off the hardware, its count brought up to date."""
    host = S.percpu[S.this_cpu]
    x86_pmu_stop(S, E, i, 1)
    perf_event_update_userpage(S, E, i)
    if S.perf_events[i].sample_type & PERF_SAMPLE_BRANCH_STACK != ZERO:
        intel_pmu_lbr_del(S, i)
    for k in range(host.n_events):
        if host.event_list[k] == i:
            if k >= host.n_events - host.n_added:
                host.n_added -= 1
            for j in range(k, host.n_events - 1):
                host.event_list[j] = host.event_list[j + 1]
                host.assign[j] = host.assign[j + 1]
            host.n_events -= 1
            host.event_list[host.n_events] = -1
            host.assign[host.n_events] = -1
            return
