"""The x86 driver: it alone programs counters for perf, as x86_pmu and its Intel part do.

Counter `idx` is 0..7 for GP and 8 + j for fixed counter j; in MSR bit masks fixed j is bit 32 + j. IDX_VLBR
is no counter: an event on it has the branch records. Nor are those from IDX_METRIC on: an event there reads
a fraction of PERF_METRICS, and fixed counter 3 counts for it.
SDM volume 3, chapter 20; arch/x86/events/core.c and intel/core.c.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.linux.native import rdpmcl, wrmsrl
from vpmu_emu.linux.percpu import this_core, this_cpu
from vpmu_emu.linux.perf.lbr import (
    PERF_SAMPLE_BRANCH_STACK,
    intel_pmu_lbr_add,
    intel_pmu_lbr_del,
)
from vpmu_emu.linux.perf.userpage import perf_event_update_userpage
from vpmu_emu.linux.state import IDX_METRIC, IDX_VLBR, N_IDX, OWNER_KVM
from vpmu_emu.machine import msr_index
from vpmu_emu.machine.bits import lowest_bit, popcount
from vpmu_emu.machine.pmu import SLOTS_COUNTER
from vpmu_emu.machine.state import N_GP, N_METRICS
from vpmu_emu.machine.u64 import BYTE, ONE, U3, U64, ZERO
from vpmu_emu.tables.events import CONSTRAINTS, LISTS, MATCHES, event_by_name
from vpmu_emu.tables.modes import kernel_version

V6_19 = kernel_version(6, 19)

INSTRUCTIONS = U64(event_by_name("instructions").code)
BRANCHES = U64(event_by_name("branches").code)
INTEL_TD_SLOTS = U64(0x0400)
INTEL_TD_METRIC_RETIRING = U64(0x8000)
INTEL_TD_METRIC_MAX = U64(0x8700)
INTEL_FIXED_VLBR_EVENT = U64(0x1B00)  # of no counter, and in no list of events
FIXED_ENABLE_PMI = U64(8)
FIXED_USER = U64(2)
FIXED_KERNEL = U64(1)
FIXED_BITS = U64(0xF)


GP_MASK = U64((1 << N_GP) - 1)
MAX_PERIOD = np.int64((1 << 47) - 1)  # half of a 48-bit counter, as intel_pmu_init() sets it
MIN_PERIOD_PDIST = 128  # glc_limit_period(): of an event with precise_ip 3
EINVAL = -22
THROTTLED = -1
METRIC_UNIT = U64(0xFF)  # all of the slots

# --- the constraints as arrays: those of list `which` are rows CON_FIRST[pebs, which] up to CON_END ------
SPR = LISTS.index("spr")
_CONSTRAINTS = [
    [[row for row in CONSTRAINTS if name in row.lists and row.pebs == pebs] for name in LISTS]
    for pebs in (False, True)
]
_FLAT = [row for part in _CONSTRAINTS for rows in part for row in rows]
_SIZES = np.array([[len(rows) for rows in part] for part in _CONSTRAINTS], dtype=np.int64)
CON_END = np.cumsum(_SIZES).reshape(_SIZES.shape)
CON_FIRST = CON_END - _SIZES
CON_CODE = np.array([row.code for row in _FLAT], dtype=np.uint64)
CON_LAST = np.array([row.last for row in _FLAT], dtype=np.uint64)
CON_MASK = np.array([MATCHES[row.match] for row in _FLAT], dtype=np.uint64)
CON_COUNTERS = np.array([row.counters for row in _FLAT], dtype=np.uint64)
CON_FIXED = np.array([-1 if row.fixed is None else row.fixed for row in _FLAT], dtype=np.int64)
CON_METRIC = np.array([-1 if row.metric is None else row.metric for row in _FLAT], dtype=np.int64)


@jit(inline=True)
def counter_bit(idx):
    """Bit of counter `idx` in GLOBAL_CTRL and its kin; of a metric 48 and its number."""
    if idx < N_GP:
        return ONE << U64(idx)
    return ONE << U64(idx + 24 if idx < IDX_METRIC else idx - IDX_METRIC + 48)


TOPDOWN_BITS = U64(((1 << N_METRICS) - 1) << 48 | 1 << 35)


# --- topdown: PERF_METRICS tells what fixed counter 3 counted; both are read and begin anew together -----
@jit()
def is_topdown_idx(idx):
    """Whether an event on `idx` needs fixed counter 3."""
    return idx == SLOTS_COUNTER or idx >= IDX_METRIC


@jit()
def has_perf_metrics(S):
    """Whether this CPU has PERF_METRICS, and the slots that it is about."""
    pmu = this_core(S).pmu
    return (
        pmu.perf_capabilities & msr_index.PERF_CAP_PERF_METRICS != ZERO
        and pmu.fixed > SLOTS_COUNTER - N_GP
    )


@jit()
def is_slots_event(config):
    """TOPDOWN.SLOTS, which only fixed counter 3 counts."""
    return config & msr_index.INTEL_ARCH_EVENT_MASK == INTEL_TD_SLOTS


@jit()
def is_metric_event(config):
    """One of the kernel's encodings of the fractions of PERF_METRICS."""
    code = config & msr_index.INTEL_ARCH_EVENT_MASK
    return code & BYTE == ZERO and INTEL_TD_METRIC_RETIRING <= code and code <= INTEL_TD_METRIC_MAX


@jit()
def _topdown_value(event, slots, metrics):
    # icl_get_topdown_value(): slots in a metric
    if event.idx < IDX_METRIC:
        return slots
    fraction = (metrics >> (U64(event.idx - IDX_METRIC) << U3)) & BYTE
    return slots * fraction // METRIC_UNIT


@jit()
def _update_topdown(event, slots, metrics, last_slots, last_metrics):
    value = _topdown_value(event, slots, metrics)
    last = ZERO
    if last_slots != ZERO:
        last = _topdown_value(event, last_slots, last_metrics)
    if value > last:  # a fraction of 8 bits may have become less
        event.count += value - last


@jit()
def _save_topdown(S, i, slots, metrics):
    # update_saved_topdown_regs()
    host = this_cpu(S)
    S.perf_events[i].saved_slots = slots
    S.perf_events[i].saved_metric = metrics
    for idx in range(SLOTS_COUNTER, N_IDX):
        other = host.events[idx]
        if is_topdown_idx(idx) and other >= 0:
            S.perf_events[other].saved_slots = slots
            S.perf_events[other].saved_metric = metrics


@jit()
def intel_update_topdown_event(S, E, i):
    """Bring the events that share fixed counter 3 up to date; `i` is one of them, or -1."""
    host = this_cpu(S)
    slots = rdpmcl(S, E, msr_index.INTEL_PMC_FIXED_RDPMC_BASE | U3)
    if slots == ZERO:
        return
    metrics = rdpmcl(S, E, msr_index.INTEL_PMC_FIXED_RDPMC_METRICS)
    last_slots = ZERO
    last_metrics = ZERO
    if i >= 0:
        last_slots = S.perf_events[i].saved_slots
        last_metrics = S.perf_events[i].saved_metric
    for idx in range(SLOTS_COUNTER, N_IDX):
        other = host.events[idx]
        if is_topdown_idx(idx) and other >= 0:
            _update_topdown(S.perf_events[other], slots, metrics, last_slots, last_metrics)
    if i >= 0 and host.events[S.perf_events[i].idx] != i:  # it is being stopped: the others follow
        _update_topdown(S.perf_events[i], slots, metrics, last_slots, last_metrics)
        _save_topdown(S, i, slots, metrics)
        return
    wrmsrl(S, E, msr_index.MSR_CORE_PERF_FIXED_CTR3, ZERO)
    wrmsrl(S, E, msr_index.MSR_PERF_METRICS, ZERO)
    if i >= 0:
        _save_topdown(S, i, ZERO, ZERO)


@jit()
def intel_pmu_read_event(S, E, i):
    """pmu->read() of an event that counts: topdown events only while the PMU stands still."""
    host = this_cpu(S)
    if S.perf_events[i].topdown == 0:
        x86_perf_event_update(S, E, i)
        return
    was_enabled = host.enabled
    host.enabled = 0
    if was_enabled != 0:
        wrmsrl(S, E, msr_index.MSR_CORE_PERF_GLOBAL_CTRL, ZERO)
    intel_update_topdown_event(S, E, i)
    host.enabled = was_enabled
    if was_enabled != 0:
        intel_pmu_enable_all(S, E)


@jit()
def _set_topdown_period(S, E, i):
    # icl_set_topdown_event_period(): counts of both registers begin at 0
    event = S.perf_events[i]
    wrmsrl(S, E, msr_index.MSR_CORE_PERF_FIXED_CTR3, ZERO)
    wrmsrl(S, E, msr_index.MSR_PERF_METRICS, ZERO)
    event.saved_slots = ZERO
    event.saved_metric = ZERO
    event.prev_count = ZERO
    perf_event_update_userpage(S, E, i)


@jit()
def x86_perf_event_update(S, E, i):
    """Add what the counter grew by to event->count, with one RDPMC."""
    event = S.perf_events[i]
    core = this_core(S)
    idx = event.idx
    if idx == IDX_VLBR:
        return
    if event.topdown != 0:
        intel_update_topdown_event(S, E, i)
        return
    if idx < N_GP:
        raw = rdpmcl(S, E, U64(idx))
        mask = core.pmu.gp_mask
    else:
        raw = rdpmcl(S, E, msr_index.INTEL_PMC_FIXED_RDPMC_BASE | U64(idx - N_GP))
        mask = core.pmu.fixed_mask
    delta = (raw - event.prev_count) & mask
    event.prev_count = raw
    event.count += delta
    event.period_left -= np.int64(delta)


@jit()
def x86_perf_event_set_period(S, E, i):
    """Load the counter so that it overflows after period_left events; 1 if a period has just ended."""
    event = S.perf_events[i]
    core = this_core(S)
    if event.idx == IDX_VLBR:
        return 0
    if event.topdown != 0:
        _set_topdown_period(S, E, i)
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
    left = min(max(left, MIN_PERIOD_PDIST if has_pdist(S, event) else 2), MAX_PERIOD)
    idx = event.idx
    mask = core.pmu.gp_mask if idx < N_GP else core.pmu.fixed_mask
    value = (ZERO - U64(left)) & mask
    event.prev_count = value
    if idx < N_GP:
        wrmsrl(S, E, msr_index.MSR_IA32_PMC0 + U64(idx), value)
    else:
        wrmsrl(S, E, msr_index.MSR_CORE_PERF_FIXED_CTR0 + U64(idx - N_GP), value)
    perf_event_update_userpage(S, E, i)
    return ended


@jit()
def _program_pebs(S, E, bit, on):
    # intel_pmu_pebs_enable(), intel_pmu_pebs_disable()
    host = this_cpu(S)
    if on != 0:
        host.pebs_enabled |= bit
    else:
        host.pebs_enabled &= ~bit
        if host.enabled != 0:
            wrmsrl(S, E, msr_index.MSR_IA32_PEBS_ENABLE, host.pebs_enabled)


@jit()
def _program(S, E, i, on):
    # intel_pmu_enable_event(), intel_pmu_disable_event()
    host = this_cpu(S)
    event = S.perf_events[i]
    idx = event.idx
    if event.topdown != 0 and is_topdown_idx(idx):
        if host.active_mask & TOPDOWN_BITS & ~counter_bit(idx) != ZERO:
            return  # another one has fixed counter 3 on, or still needs it
        idx = SLOTS_COUNTER
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
        value = event.config | msr_index.ARCH_PERFMON_EVENTSEL_INT
        if event.exclude_user == 0:
            value |= msr_index.ARCH_PERFMON_EVENTSEL_USR
        if event.exclude_kernel == 0:
            value |= msr_index.ARCH_PERFMON_EVENTSEL_OS
        if pebs:  # what interrupts is the store's threshold
            value &= ~msr_index.ARCH_PERFMON_EVENTSEL_INT
            if this_core(S).pmu.perf_capabilities & msr_index.PERF_CAP_PEBS_BASELINE != ZERO:
                value |= msr_index.ICL_EVENTSEL_ADAPTIVE
        if on != 0:
            value |= msr_index.ARCH_PERFMON_EVENTSEL_ENABLE
        wrmsrl(S, E, msr_index.MSR_P6_EVNTSEL0 + U64(idx), value)
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
def intel_pmu_has_bts_period(S, event, period):
    """Whether Linux takes an event for one of the branch trace store: every branch, at a fixed period."""
    if (
        event.sample_freq != 0
        or period != ONE
        or event.config & msr_index.INTEL_ARCH_EVENT_MASK != BRANCHES
    ):
        return False
    # "BTS doesn't virtualize", since 6.19
    return event.exclude_host == 0 or S.config.kernel < V6_19


@jit()
def x86_pmu_start(S, E, i, reload):
    """Let a scheduled event count; `reload` 1 loads its period first (PERF_EF_RELOAD)."""
    host = this_cpu(S)
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
    host = this_cpu(S)
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
    host = this_cpu(S)
    host.disable_count += 1
    if host.disable_count == 1 and host.enabled != 0:
        host.enabled = 0
        wrmsrl(S, E, msr_index.MSR_CORE_PERF_GLOBAL_CTRL, ZERO)
        if host.pebs_enabled != ZERO:
            wrmsrl(S, E, msr_index.MSR_IA32_PEBS_ENABLE, ZERO)


@jit()
def intel_pmu_enable_all(S, E):
    """Write FIXED_CTR_CTRL if it changed, then GLOBAL_CTRL without the counters of exclude_host events."""
    host = this_cpu(S)
    if host.fixed_ctrl_val != host.active_fixed_ctrl_val:
        wrmsrl(S, E, msr_index.MSR_CORE_PERF_FIXED_CTR_CTRL, host.fixed_ctrl_val)
        host.active_fixed_ctrl_val = host.fixed_ctrl_val
    if host.pebs_enabled != ZERO:
        wrmsrl(S, E, msr_index.MSR_IA32_PEBS_ENABLE, host.pebs_enabled)
    wrmsrl(S, E, msr_index.MSR_CORE_PERF_GLOBAL_CTRL, host.intel_ctrl & ~host.intel_ctrl_guest_mask)


@jit()
def perf_pmu_enable(S, E):
    """Undo one perf_pmu_disable(); the last one programs what was scheduled meanwhile (x86_pmu_enable)."""
    host = this_cpu(S)
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


# --- which counter for which event -----------------------------------------------------------------------
@jit()
def _constraint(S, config, pebs):
    # The row of the constraints of this CPU that a selector matches, -1 none; `pebs` 1: of precise events.
    which = S.config.events
    for k in range(CON_FIRST[pebs, which], CON_END[pebs, which]):
        code = config & CON_MASK[k]
        if CON_CODE[k] <= code and code <= CON_LAST[k]:
            return k
    return -1


@jit()
def _choice(S, k):
    # What row k of the constraints leaves on this CPU (intel_pmu_check_event_constraints)
    core = this_core(S)
    choice = (ONE << U64(core.pmu.gp)) - ONE
    if k < 0:
        return choice
    choice &= CON_COUNTERS[k]
    if CON_FIXED[k] >= 0 and CON_FIXED[k] < core.pmu.fixed:
        choice |= ONE << U64(N_GP + CON_FIXED[k])
    if CON_METRIC[k] >= 0 and core.pmu.fixed > SLOTS_COUNTER - N_GP:
        choice |= ONE << U64(IDX_METRIC + CON_METRIC[k])
    return choice


@jit()
def x86_get_event_constraints(S, config):
    """Counters that may count `config`, as bits by `idx`; 0 if this CPU has none."""
    return _choice(S, _constraint(S, config, 0))


@jit()
def has_pdist(S, event):
    """:ppp of the Golden Cove core: the most precise counter, and no short periods (glc_limit_period)."""
    return event.precise_ip == 3 and S.config.events == SPR


@jit()
def intel_get_event_constraints(S, event):
    """Counters that may count an event, as bits by `idx`; a precise one has constraints of its own."""
    if event.config == INTEL_FIXED_VLBR_EVENT:
        return ONE << U64(IDX_VLBR)  # intel_vlbr_constraints(), before all others
    if event.precise_ip == 0:
        return x86_get_event_constraints(S, event.config)
    if event.precise_ip == 3 and event.config == INSTRUCTIONS:
        return ONE << U64(N_GP)  # PDIR: fixed0_constraint
    k = _constraint(S, event.config, 1)
    if k < 0:
        k = _constraint(S, event.config, 0)  # PMU_FL_PEBS_ALL
    choice = _choice(S, k)
    # PDist: counter0_constraint, or none
    return choice & ONE if has_pdist(S, event) else choice


@jit()
def x86_schedule_events(S, rows, n):
    """Find a counter for each of the events `rows[:n]`: 0 and they stand in `fake_assign`, or -EINVAL."""
    host = this_cpu(S)
    choices = host.event_constraint
    used = ZERO
    k = 0
    for j in range(n):
        choices[j] = intel_get_event_constraints(S, S.perf_events[rows[j]])
    while k < n:  # everybody keeps the counter that it had, if that works
        idx = S.perf_events[rows[k]].idx
        if idx < 0:
            break
        bit = ONE << U64(idx)
        if choices[k] & bit == ZERO or used & bit != ZERO:
            break
        used |= bit
        host.fake_assign[k] = idx
        k += 1
    if k == n:
        return 0
    # perf_assign_events(): the least flexible first, fixed counters preferred
    used = ZERO
    placed = 0
    for weight in range(1, N_GP + 2):
        for j in range(n):
            if popcount(choices[j]) != U64(weight):
                continue
            free = choices[j] & ~used
            if free & ~GP_MASK != ZERO:
                free &= ~GP_MASK
            idx = lowest_bit(free)
            if idx < 0:
                return EINVAL
            used |= ONE << U64(idx)
            host.fake_assign[j] = idx
            placed += 1
    return 0 if placed == n else EINVAL


@jit()
def collect_event(S, rows, n, config):
    """Whether a further event of `config` may join the events `rows[:n]` at all: 0 or -EINVAL."""
    pmu = this_core(S).pmu
    metrics = 0
    if has_perf_metrics(S):
        for k in range(n):
            if is_metric_event(S.perf_events[rows[k]].config):
                metrics += 1
        if is_metric_event(config):
            if metrics == N_METRICS:
                return EINVAL
            metrics += 1
    return 0 if n < pmu.gp + pmu.fixed + metrics else EINVAL


@jit()
def x86_pmu_add(S, E, i):
    """Take event i into the set that is scheduled; 0, or EINVAL if the counters do not suffice."""
    host = this_cpu(S)
    n = host.n_events
    if collect_event(S, host.event_list, n, S.perf_events[i].config) != 0:
        return EINVAL
    host.event_list[n] = i
    if x86_schedule_events(S, host.event_list, n + 1) != 0:
        host.event_list[n] = -1
        return EINVAL
    for k in range(n + 1):
        host.assign[k] = host.fake_assign[k]
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
    host = this_cpu(S)
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
