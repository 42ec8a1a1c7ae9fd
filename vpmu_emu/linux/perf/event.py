"""What the kernel offers to owners of events: create, release, enable, disable, pause, period, read.

kernel/events/core.c. Creation fails with a negative errno, as in the kernel.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.linux import state
from vpmu_emu.linux.hrtimer import host_timer_program
from vpmu_emu.linux.native import cost, retire_work, wrmsrl
from vpmu_emu.linux.percpu import this_core, this_cpu
from vpmu_emu.linux.perf.clocks import (
    PERF_COUNT_SW_MAX,
    UNCORE_CAS_COUNT_RD,
    UNCORE_CLOCKTICKS,
    clock_program,
    event_update,
    is_clock,
    pmu_of,
)
from vpmu_emu.linux.perf.lbr import PERF_SAMPLE_BRANCH_STACK
from vpmu_emu.linux.perf.mediated import EBUSY, is_include_guest_event, nr_mediated_pmu_vms
from vpmu_emu.linux.perf.output import SAMPLE_SUPPORTED
from vpmu_emu.linux.perf.overflow import NSEC_PER_SEC, is_sampling_event
from vpmu_emu.linux.perf.sched import (
    ctx_resched,
    event_filter_match,
    event_sched_out,
    group_sched_in,
    group_sched_out,
)
from vpmu_emu.linux.perf.throttle import perf_event_unthrottle_group
from vpmu_emu.linux.perf.times import (
    ATTR_BRANCH_STACK,
    ATTR_EXCLUDE_GUEST,
    ATTR_EXCLUDE_HOST,
    ATTR_EXCLUDE_KERNEL,
    ATTR_EXCLUDE_USER,
    ATTR_PINNED,
    ATTR_PRECISE_SHIFT,
    ctx_cpu,
    error_over,
    next_member,
    perf_event_set_state,
    perf_event_update_time,
)
from vpmu_emu.linux.perf.userpage import perf_event_update_userpage
from vpmu_emu.linux.perf.x86 import (
    EINVAL,
    INTEL_TD_METRIC_RETIRING,
    MAX_PERIOD,
    MIN_PERIOD_PDIST,
    THROTTLED,
    collect_event,
    has_pdist,
    has_perf_metrics,
    intel_get_event_constraints,
    intel_pmu_has_bts_period,
    is_metric_event,
    is_slots_event,
    perf_pmu_disable,
    perf_pmu_enable,
    x86_pmu_start,
    x86_pmu_stop,
    x86_schedule_events,
)
from vpmu_emu.linux.trace_kinds import TR_PERF_CREATE, TR_PERF_RELEASE
from vpmu_emu.machine import msr_index
from vpmu_emu.machine.pmu import counter_value
from vpmu_emu.machine.ring import emit
from vpmu_emu.machine.state import N_CTR, N_GP
from vpmu_emu.machine.u64 import ONE, TOP, U8, U64, ZERO
from vpmu_emu.tables.linux import ERRNO

ENOMEM, ENOENT, EOPNOTSUPP = (-ERRNO[name] for name in ("ENOMEM", "ENOENT", "EOPNOTSUPP"))
ORPHAN = -2  # event.parent of an inherited event whose origin is gone

COST_RESERVE = cost("x86_reserve_hardware")


@jit()
def perf_event_alloc_errno(S, i):
    """Patch 02: an event that includes the guest cannot be made while a guest owns the PMU there.

    As merged: nor anywhere while there is a VM whose guests will (mediated_pmu_account_event).
    """
    event = S.perf_events[i]
    if is_include_guest_event(S, event) and nr_mediated_pmu_vms(S) != 0:
        return EOPNOTSUPP
    if event.pmu_ctx == state.PMU_CORE and event.exclude_guest == 0:
        for cpu in range(state.N_CORES):
            here = event.cpu == cpu or (event.cpu < 0 and ctx_cpu(S, event.ctx) == cpu)
            if here and S.percpu[cpu].force_exclude_guest != 0:
                return EBUSY
    return 0


@jit()
def validate_group(S, i):
    """Whether the counters suffice for event i and its group when nothing else is there: 0, or EINVAL.

    Members that are off are left out, as collect_events() does in every kernel.
    """
    rows = this_cpu(S).fake_list
    leader = S.perf_events[i].leader
    n = 0
    for k in range(state.N_EVENTS):
        event = S.perf_events[k]
        if event.used == 0 or event.leader != leader or pmu_of(event.pmu_type) != state.PMU_CORE:
            continue
        if k != leader and k != i and event.state <= state.PERF_EVENT_STATE_OFF:
            continue
        if collect_event(S, rows, n, event.config) != 0:
            return EINVAL
        rows[n] = k
        n += 1
    return x86_schedule_events(S, rows, n)


@jit()
def check_period(S, event, value):
    """x86_pmu_check_period(): PDist takes no short ones, and branches not 1: that is BTS."""
    if intel_pmu_has_bts_period(S, event, value):
        return False
    return not has_pdist(S, event) or value >= U64(MIN_PERIOD_PDIST)


@jit()
def intel_pmu_hw_config(S, i):
    """What the driver does not take from event i: 0, EINVAL or EOPNOTSUPP."""
    event = S.perf_events[i]
    if intel_pmu_has_bts_period(S, event, event.sample_period):
        return EOPNOTSUPP  # intel_pmu_bts_config(): this CPU has no branch trace store
    if not has_perf_metrics(S):
        return 0
    metric = is_metric_event(event.config)
    if not metric and not is_slots_event(event.config):
        return 0
    code = event.config & msr_index.INTEL_ARCH_EVENT_MASK
    if event.config != code:
        return EINVAL
    there = U64(this_core(S).metrics.count)
    if metric and code < INTEL_TD_METRIC_RETIRING + (there << U8):
        leader = S.perf_events[event.leader]
        if is_sampling_event(event) or is_sampling_event(leader) or not is_slots_event(leader.config):
            return EINVAL
    return 0


@jit()
def perf_try_init_event(S, i):
    """pmu->event_init() and the rules of groups: 0 or a negative errno. Sets event.pmu_ctx."""
    event = S.perf_events[i]
    kind = pmu_of(event.pmu_type)
    samples = is_sampling_event(event)
    excludes = event.exclude_user | event.exclude_kernel | event.exclude_host | event.exclude_guest
    if kind < 0 or (kind == state.PMU_SOFTWARE and event.config >= PERF_COUNT_SW_MAX):
        return ENOENT
    if kind == state.PMU_UNCORE:  # counts for the socket, for nobody in it
        known = event.config == UNCORE_CLOCKTICKS or event.config == UNCORE_CAS_COUNT_RD
        if samples or excludes != 0 or event.ctx >= state.CTX_TASK or not known:
            return EINVAL
    if kind == state.PMU_CORE:
        errno = intel_pmu_hw_config(S, i)
        if errno != 0:
            return errno
        if intel_get_event_constraints(S, event) == ZERO:
            return EINVAL  # validate_event(): no counter of this CPU can count it
    if samples and event.sample_freq == 0 and not check_period(S, event, event.sample_period):
        return EINVAL
    if is_clock(event) and event.sample_freq != 0:  # perf_swevent_init_hrtimer()
        event.sample_period = NSEC_PER_SEC // U64(event.sample_freq)
        event.sample_freq = 0
    if event.owner == state.OWNER_HOST and event.sample_type & ~SAMPLE_SUPPORTED != ZERO:
        branches = event.sample_type & PERF_SAMPLE_BRANCH_STACK != ZERO
        return EOPNOTSUPP if branches else EINVAL  # not written into samples
    event.pmu_ctx = kind
    if event.leader != i:
        leader = S.perf_events[event.leader]
        same = leader.ctx == event.ctx and leader.cpu == event.cpu
        if leader.used == 0 or leader.leader != event.leader or not same or event.pinned != 0:
            return EINVAL
        if kind == state.PMU_SOFTWARE:
            event.pmu_ctx = leader.pmu_ctx
        elif leader.pmu_ctx != state.PMU_SOFTWARE and leader.pmu_ctx != kind:
            return EINVAL
    return validate_group(S, i) if kind == state.PMU_CORE else 0


@jit()
def perf_event_alloc(S, i):
    """Start values of everything in row i that is not an attribute; no buffer is mapped."""
    event = S.perf_events[i]
    S.perf_ids += ONE
    event.id = S.perf_ids
    event.order = S.list_end
    S.list_end += 1
    S.perf_rows = max(S.perf_rows, i + 1)
    event.period = U64(MAX_PERIOD)
    if event.sample_period != ZERO:
        event.period = event.sample_period
    elif event.sample_freq != 0:
        event.period = ONE
    event.last_period = event.period
    event.period_left = np.int64(event.period)
    event.count = ZERO
    event.tstamp = this_core(S).t
    event.total_time_enabled = 0
    event.total_time_running = 0
    event.error_cause = state.ERR_NONE
    event.error_time = 0
    event.error_log = 0
    event.group_generation = 0
    event.topdown = 0
    event.saved_slots = ZERO
    event.saved_metric = ZERO
    event.samples = ZERO
    event.throttles = ZERO
    event.child_count = ZERO
    event.child_enabled = 0
    event.child_running = 0
    event.buffer = 0
    event.buffer_pages = 0
    event.head = ZERO
    event.output = -1
    event.paused = 0
    event.overwrite = 0
    event.event_limit = 0
    event.lost = ZERO
    event.rb_lost = ZERO
    event.freq_time = this_core(S).t
    event.freq_count = ZERO
    event.idx = -1
    event.stopped = 1
    event.arch_stopped = 0
    event.prev_count = ZERO
    event.interrupts = 0
    event.interrupts_seq = 0


@jit()
def _resched(S, E, i):
    # After event i became runnable: on the core PMU everything of less priority gives way (ctx_resched).
    event = S.perf_events[i]
    leader = S.perf_events[event.leader]
    if leader.pmu_ctx == state.PMU_CORE:
        ctx_resched(S, E, event.ctx, leader.pinned)
    elif leader.state >= state.PERF_EVENT_STATE_INACTIVE and event_filter_match(S, leader):
        group_sched_out(S, E, event.leader)
        group_sched_in(S, E, event.leader)


@jit()
def _move_group(S, E, i):
    # perf_event_open(), move_group: a software group that gets a member of another PMU goes there, to the
    # end of the list, and begins anew, on or off as it was opened.
    leader = S.perf_events[i].leader
    group_sched_out(S, E, leader)
    for k in range(S.perf_rows):
        member = S.perf_events[k]
        if member.used != 0 and member.leader == leader and k != i:
            member.pmu_ctx = S.perf_events[i].pmu_ctx
            on = member.disabled == 0
            wants = state.PERF_EVENT_STATE_INACTIVE if on else state.PERF_EVENT_STATE_OFF
            perf_event_set_state(S, E, k, wants)
    S.perf_events[leader].order = S.list_end
    S.list_end += 1


@jit()
def x86_reserve_hardware(S, E, i):
    """The first event of the core PMU after there was none: buffers for all CPUs (reserve_ds_buffers).

    Works on the CPU that makes event i, wherever that will count.
    """
    for k in range(S.perf_rows):
        other = S.perf_events[k]
        if k != i and other.used != 0 and pmu_of(other.pmu_type) == state.PMU_CORE:
            return
    for _ in range(S.config.n_cores):
        retire_work(S, E, COST_RESERVE)


@jit()
def _pair_with_slots(S, E, i):
    # PERF_X86_EVENT_TOPDOWN: from now on event i's leader shares fixed counter 3 with a metric
    leader = S.perf_events[i].leader
    if S.perf_events[leader].topdown == 0:
        group_sched_out(S, E, leader)
        S.perf_events[leader].topdown = 1
    S.perf_events[i].topdown = 1


@jit()
def perf_install_in_context(S, E, i):
    """The rest of perf_event_open() for row i; 0, or a negative errno and the row is free again.

    The caller has filled `used`, the attributes, ctx, cpu, leader, owner, pmc, vcpu, parent, spec, and
    `state` (OFF for attr.disabled, else INACTIVE). Works on the CPU where the context is active.
    """
    event = S.perf_events[i]
    errno = perf_try_init_event(S, i)
    if errno == 0:
        errno = perf_event_alloc_errno(S, i)
    if errno != 0:
        event.used = 0
        return errno
    perf_event_alloc(S, i)
    if event.leader != i:
        S.perf_events[event.leader].group_generation += 1
        if is_slots_event(S.perf_events[event.leader].config) and is_metric_event(event.config):
            _pair_with_slots(S, E, i)
    moves = S.perf_events[event.leader].pmu_ctx != event.pmu_ctx
    if moves:
        _move_group(S, E, i)
    emit(E, this_core(S).t, TR_PERF_CREATE, ZERO, event.id, event.config, event.sample_period)
    leads = S.perf_events[event.leader].state
    wants = leads if leads <= state.PERF_EVENT_STATE_OFF else event.state  # __perf_effective_state()
    if moves and leads == state.PERF_EVENT_STATE_INACTIVE:
        wants = leads  # the leader was installed anew
    if ctx_cpu(S, event.ctx) == S.this_cpu and wants != state.PERF_EVENT_STATE_OFF:
        _resched(S, E, i)
    return 0


@jit()
def perf_event_create_kernel_counter(S, E, ctx, flags, config, period, owner, vcpu, pmc):
    """Make an event and schedule it; returns its row, or a negative errno.

    `flags` are ATTR_*, `config` selector bits, `period` a sample period or 0. `vcpu` (a row)
    and `pmc` are what KVM's overflow handler is called with, -1 none.
    """
    i = 0
    while i < state.N_EVENTS and S.perf_events[i].used != 0:
        i += 1
    if i == state.N_EVENTS:
        return ENOMEM
    event = S.perf_events[i]
    event.used = 1
    event.state = state.PERF_EVENT_STATE_INACTIVE
    event.pmu_type = state.PERF_TYPE_RAW
    event.ctx = ctx
    event.cpu = -1
    event.vcpu = vcpu
    event.parent = -1
    event.owner = owner
    event.pmc = pmc
    event.spec = -1
    event.leader = i
    event.config = config
    event.clock = 0
    event.exclusive = 0
    event.sample_id_all = 0
    event.pinned = 1 if flags & ATTR_PINNED != 0 else 0
    event.exclude_user = 1 if flags & ATTR_EXCLUDE_USER != 0 else 0
    event.exclude_kernel = 1 if flags & ATTR_EXCLUDE_KERNEL != 0 else 0
    event.exclude_host = 1 if flags & ATTR_EXCLUDE_HOST != 0 else 0
    event.exclude_guest = 1 if flags & ATTR_EXCLUDE_GUEST != 0 else 0
    event.exclude_idle = 1 if owner == state.OWNER_KVM else 0
    event.inherit = 0
    event.precise_ip = flags >> ATTR_PRECISE_SHIFT & 3
    event.sample_freq = 0
    event.sample_type = PERF_SAMPLE_BRANCH_STACK if flags & ATTR_BRANCH_STACK != 0 else ZERO
    event.read_format = ZERO
    event.watchdog = 0
    event.sample_period = period
    x86_reserve_hardware(S, E, i)
    errno = perf_install_in_context(S, E, i)
    return errno if errno != 0 else i


@jit()
def _free(S, E, i):
    # perf_group_detach() and _free_event(): what it led goes on alone.
    event = S.perf_events[i]
    emit(E, this_core(S).t, TR_PERF_RELEASE, ZERO, event.id, ZERO, ZERO)
    error_over(S, i, 1)
    event.used = 0
    if event.leader != i:
        S.perf_events[event.leader].group_generation += 1
    k = next_member(S, i, ZERO)
    while k >= 0:
        # Flexible, for only a leader is pinned, the last of the list, and on the PMU of the group.
        perf_event_update_time(S, k)
        S.perf_events[k].leader = k
        S.perf_events[k].order = S.list_end
        S.list_end += 1
        metric = event.topdown != 0 and is_metric_event(S.perf_events[k].config)
        if metric and event.ctx != state.CTX_NONE:  # PERF_EV_CAP_SIBLING
            event_sched_out(S, E, k)
            S.perf_events[k].error_cause = state.ERR_NO_LEADER
            S.perf_events[k].error_time = this_core(S).t
            perf_event_set_state(S, E, k, state.PERF_EVENT_STATE_ERROR)
        k = next_member(S, i, ZERO)
    for cpu in range(state.N_CORES):
        for k in range(state.N_IDX):
            if S.percpu[cpu].last_event[k] == i:
                S.percpu[cpu].last_event[k] = -1
    while S.perf_rows > 0 and S.perf_events[S.perf_rows - 1].used == 0:
        S.perf_rows -= 1


@jit()
def _call_begin(S, i):
    # event_function_call(): work on the CPU on which event i's task runs. Returns this one.
    here = S.this_cpu
    cpu = ctx_cpu(S, S.perf_events[i].ctx)
    if cpu >= 0:
        S.this_cpu = cpu
    return here


@jit()
def _call_end(S, E, here):
    core = this_core(S)
    host = this_cpu(S)
    if S.this_cpu != here and core.vmx.nonroot != 0:  # perf has switched the PMU on for the host
        wrmsrl(S, E, msr_index.MSR_CORE_PERF_GLOBAL_CTRL, host.intel_ctrl & ~host.intel_ctrl_host_mask)
    S.this_cpu = here


@jit()
def perf_event_release_kernel(S, E, i):
    """Remove event i and what was inherited from it; its counter stays free until the next scheduling.

    What was inherited and runs on another CPU is only cut off: its task's end frees it.
    """
    here = _call_begin(S, i)
    for k in range(S.perf_rows):
        if S.perf_events[k].used != 0 and S.perf_events[k].parent == i:
            cpu = ctx_cpu(S, S.perf_events[k].ctx)
            if cpu < 0 or cpu == S.this_cpu:
                event_sched_out(S, E, k)
                _free(S, E, k)
            else:
                S.perf_events[k].parent = ORPHAN
    event_sched_out(S, E, i)
    _free(S, E, i)
    _call_end(S, E, here)


@jit()
def __perf_event_enable(S, E, i):
    event = S.perf_events[i]
    if event.state >= state.PERF_EVENT_STATE_INACTIVE or event.state < state.PERF_EVENT_STATE_ERROR:
        return
    if event.state == state.PERF_EVENT_STATE_ERROR:
        if event.leader == i and event.topdown != 0 and is_metric_event(event.config):
            return  # it cannot be without the slots event that is gone
        perf_event_set_state(S, E, i, state.PERF_EVENT_STATE_OFF)
    perf_event_set_state(S, E, i, state.PERF_EVENT_STATE_INACTIVE)
    if ctx_cpu(S, event.ctx) != S.this_cpu or not event_filter_match(S, event):
        return
    # A member goes on only together with its leader.
    if event.leader == i or S.perf_events[event.leader].state == state.PERF_EVENT_STATE_ACTIVE:
        _resched(S, E, i)


@jit()
def perf_event_enable(S, E, i):
    """Let event i be scheduled; an event in ERROR gets another chance."""
    here = _call_begin(S, i)
    __perf_event_enable(S, E, i)
    _call_end(S, E, here)


@jit()
def __perf_event_disable(S, E, i):
    if S.perf_events[i].state < state.PERF_EVENT_STATE_INACTIVE:
        return
    perf_pmu_disable(S, E)
    if S.perf_events[i].leader == i:
        group_sched_out(S, E, i)
    else:
        event_sched_out(S, E, i)
    perf_event_set_state(S, E, i, state.PERF_EVENT_STATE_OFF)
    perf_pmu_enable(S, E)
    perf_event_update_userpage(S, E, i)


@jit()
def perf_event_disable(S, E, i):
    """Stop event i, with the group that it leads, and keep it; one in ERROR stays in ERROR."""
    here = _call_begin(S, i)
    __perf_event_disable(S, E, i)
    _call_end(S, E, here)


@jit()
def perf_event_pause(S, E, i, reset):
    """Disable event i and return its count; `reset` 1 starts it again from 0."""
    perf_event_disable(S, E, i)
    event = S.perf_events[i]
    count = event.count
    if reset != 0:
        event.count = ZERO
    return count


@jit()
def __perf_event_period(S, E, i, value):
    event = S.perf_events[i]
    if not is_sampling_event(event) or value == ZERO or value & TOP != ZERO:
        return EINVAL
    if event.sample_freq == 0 and not check_period(S, event, value):
        return EINVAL
    if event.sample_freq != 0:
        event.sample_freq = np.int64(value)
    else:
        event.sample_period = value
        event.period = value
    core = pmu_of(event.pmu_type) == state.PMU_CORE
    active = event.state == state.PERF_EVENT_STATE_ACTIVE
    if active:
        perf_pmu_disable(S, E)
    if active and core:
        x86_pmu_stop(S, E, i, 1)
    event.period_left = 0 if core else np.int64(event.period)
    if active and core:
        x86_pmu_start(S, E, i, 1)
    elif active and is_clock(event):
        clock_program(S, i)
        host_timer_program(S, E)
    if active:
        if event.interrupts == THROTTLED:
            perf_event_unthrottle_group(S, E, i, 0)
        perf_pmu_enable(S, E)
    return 0


@jit()
def perf_event_period(S, E, i, value):
    """Give a sampling event a new period, or frequency, from now on; 0 or a negative errno."""
    here = _call_begin(S, i)
    errno = __perf_event_period(S, E, i, value)
    _call_end(S, E, here)
    return errno


@jit()
def perf_event_read_value(S, E, i):
    """The event's count with its children's, brought up to date as far as they are on the event's CPU."""
    here = _call_begin(S, i)
    event = S.perf_events[i]
    total = event.child_count
    for k in range(S.perf_rows):
        one = S.perf_events[k]
        if one.used == 0 or (k != i and one.parent != i):
            continue
        perf_event_update_time(S, k)
        if one.state == state.PERF_EVENT_STATE_ACTIVE and ctx_cpu(S, one.ctx) == S.this_cpu:
            event_update(S, E, k)
        total += one.count
    _call_end(S, E, here)
    return total


@jit()
def perf_event_count_now(S, i):
    """What perf_event_read_value() would give for an event of KVM; changes nothing."""
    event = S.perf_events[i]
    idx = event.idx
    count = event.child_count + event.count
    if event.state != state.PERF_EVENT_STATE_ACTIVE or event.stopped != 0 or idx < 0 or idx >= N_CTR:
        return count
    core = S.cores[max(ctx_cpu(S, event.ctx), 0)]
    mask = core.pmu.gp_mask if idx < N_GP else core.pmu.fixed_mask
    return count + ((counter_value(core, idx) - event.prev_count) & mask)


@jit()
def perf_event_exit_task(S, E, task):
    """Task number `task` ends: what was inherited is added to its origin, other events count no more."""
    ctx = state.CTX_TASK + task
    for i in range(S.perf_rows):
        event = S.perf_events[i]
        if event.used != 0 and event.ctx == ctx:
            event_sched_out(S, E, i)
            perf_event_update_time(S, i)
    for i in range(S.perf_rows):
        event = S.perf_events[i]
        if event.used == 0 or event.ctx != ctx:
            continue
        event.state = state.PERF_EVENT_STATE_EXIT
        event.ctx = state.CTX_NONE
        if event.parent >= 0:  # sync_child_event()
            parent = S.perf_events[event.parent]
            parent.child_count += event.count
            parent.child_enabled += event.total_time_enabled
            parent.child_running += event.total_time_running
        if event.parent != -1:
            _free(S, E, i)


@jit()
def perf_init(S, E):
    """Schedule the events of this CPU that exist before the run starts, and arm its timer, once."""
    host = this_cpu(S)
    if host.booted != 0:
        return
    host.booted = 1
    if S.perf_rows > 0:
        ctx_resched(S, E, S.this_cpu, 1)
    host_timer_program(S, E)
