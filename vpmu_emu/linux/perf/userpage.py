"""struct perf_event_mmap_page: the page by which a program reads its counter without a system call.

kernel/events/core.c, arch/x86/events/core.c.
"""

from __future__ import annotations

from vpmu_emu._jit import jit, memory_at
from vpmu_emu.linux.percpu import this_core
from vpmu_emu.linux.perf.times import perf_event_update_time, sched_clock
from vpmu_emu.linux.state import IDX_METRIC, IDX_VLBR, PERF_EVENT_STATE_ACTIVE
from vpmu_emu.machine import msr_index
from vpmu_emu.machine.physical import ld32, st32, st64
from vpmu_emu.machine.state import N_GP
from vpmu_emu.machine.u64 import ONE, U64, ZERO

# struct perf_event_mmap_page, include/uapi/linux/perf_event.h
PAGE_LOCK = U64(8)
PAGE_INDEX = U64(12)
PAGE_OFFSET = U64(16)
PAGE_TIME_ENABLED = U64(24)
PAGE_TIME_RUNNING = U64(32)
PAGE_TIME_OFFSET = U64(56)
PAGE_DATA_HEAD = U64(1024)
PAGE_DATA_TAIL = U64(1032)


@jit()
def perf_event_index(S, i):
    """What RDPMC takes in ECX for event i, and 1; 0 while it is on no counter."""
    event = S.perf_events[i]
    if event.state != PERF_EVENT_STATE_ACTIVE or event.stopped != 0 or event.idx < 0:
        return ZERO
    if event.idx < N_GP:
        return U64(event.idx) + ONE
    if event.idx == IDX_VLBR:
        return ZERO
    if event.idx >= IDX_METRIC:
        return msr_index.INTEL_PMC_FIXED_RDPMC_METRICS + ONE
    return (msr_index.INTEL_PMC_FIXED_RDPMC_BASE | U64(event.idx - N_GP)) + ONE


@jit()
def perf_event_update_userpage(S, E, i):
    """Tell the mapped page, if there is one, where event i counts now. Modifies memory."""
    event = S.perf_events[i]
    if event.buffer == 0 or E.memory_size == 0:
        return
    M = memory_at(E.memory, E.memory_size)
    page = U64(event.buffer)
    lock = ld32(M, page + PAGE_LOCK)
    st32(M, page + PAGE_LOCK, lock + ONE)
    index = perf_event_index(S, i)
    offset = event.count + event.child_count
    if index != ZERO:
        # the counter's bits as the program extends them; Linux keeps them so in prev_count
        mask = this_core(S).pmu.gp_mask
        offset -= event.prev_count
        if event.prev_count > mask >> ONE:
            offset += mask + ONE
    perf_event_update_time(S, i)
    enabled = sched_clock(S, event.total_time_enabled + event.child_enabled)
    running = sched_clock(S, event.total_time_running + event.child_running)
    st32(M, page + PAGE_INDEX, index)
    st64(M, page + PAGE_OFFSET, offset)
    st64(M, page + PAGE_TIME_ENABLED, enabled)
    st64(M, page + PAGE_TIME_RUNNING, running)
    # a program adds (its TSC in nanoseconds + this) to the times
    st64(M, page + PAGE_TIME_OFFSET, ZERO - sched_clock(S, this_core(S).t))
    st32(M, page + PAGE_LOCK, lock + ONE + ONE)
