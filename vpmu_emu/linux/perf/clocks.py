"""Events that need no counter of a core: clocks, things that the kernel counts, the socket's uncore.

They are always scheduled, and a guest that owns the PMU does not touch them.
kernel/events/core.c (perf_swevent, cpu_clock_event, task_clock_event), arch/x86/events/intel/uncore.c.
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.linux import state
from vpmu_emu.linux.percpu import this_core, this_cpu
from vpmu_emu.linux.perf.times import sched_clock
from vpmu_emu.linux.perf.x86 import intel_pmu_read_event
from vpmu_emu.machine.clock import later, time_of_tick, tsc_at
from vpmu_emu.machine.pmu import class_total
from vpmu_emu.machine.state import CLASS
from vpmu_emu.machine.u64 import U64, ZERO

# enum perf_sw_ids
PERF_COUNT_SW_CPU_CLOCK = U64(0)
PERF_COUNT_SW_TASK_CLOCK = U64(1)
PERF_COUNT_SW_PAGE_FAULTS = U64(2)
PERF_COUNT_SW_CONTEXT_SWITCHES = U64(3)
PERF_COUNT_SW_CPU_MIGRATIONS = U64(4)
PERF_COUNT_SW_PAGE_FAULTS_MIN = U64(5)
PERF_COUNT_SW_DUMMY = U64(9)
PERF_COUNT_SW_MAX = U64(12)
# events of the memory controller: EVENT and UMASK
UNCORE_CLOCKTICKS = U64(0x0001)
UNCORE_CAS_COUNT_RD = U64(0xCF05)

NS_PER_MS = U64(1_000_000)
MIN_CLOCK_PERIOD = U64(10_000)  # nanoseconds, perf_swevent_start_hrtimer()
C_FETCHED = CLASS["fetched"]


@jit()
def pmu_of(pmu_type):
    """PMU_* of an attr.type, -1 if no PMU has it."""
    if pmu_type == state.PERF_TYPE_SOFTWARE:
        return state.PMU_SOFTWARE
    if pmu_type == state.PERF_TYPE_UNCORE:
        return state.PMU_UNCORE
    core = pmu_type == state.PERF_TYPE_RAW or pmu_type == state.PERF_TYPE_HARDWARE
    return state.PMU_CORE if core or pmu_type == state.PERF_TYPE_HW_CACHE else -1


@jit(inline=True)
def is_clock(event):
    """cpu-clock or task-clock: they sample by a timer."""
    return event.pmu_type == state.PERF_TYPE_SOFTWARE and event.config <= PERF_COUNT_SW_TASK_CLOCK


@jit()
def free_running(S, i):
    """Running total of what event i counts; 0 for what is told by perf_sw_event()."""
    event = S.perf_events[i]
    total = ZERO
    if event.pmu_type == state.PERF_TYPE_UNCORE:
        if event.config == UNCORE_CLOCKTICKS:
            return tsc_at(this_core(S), this_core(S).t)
        for cpu in range(state.N_CORES):  # one memory controller for the socket
            total += class_total(S.cores[cpu], C_FETCHED, 3)
    elif is_clock(event):
        total = sched_clock(S, this_core(S).t)
    return total


@jit()
def clock_program(S, i):
    """Start the timer of a clock that samples (perf_swevent_start_hrtimer)."""
    host = this_cpu(S)
    event = S.perf_events[i]
    nanoseconds = max(event.period, MIN_CLOCK_PERIOD)
    span = time_of_tick(nanoseconds, NS_PER_MS, U64(S.config.core_khz))
    event.freq_time = later(this_core(S).t, span)
    host.clock_at = min(host.clock_at, event.freq_time)


@jit()
def event_update(S, E, i):
    """pmu->read(): bring the count of an ACTIVE event up to date."""
    event = S.perf_events[i]
    if pmu_of(event.pmu_type) != state.PMU_CORE:
        total = free_running(S, i)
        event.count += total - event.prev_count
        event.prev_count = total
    elif event.stopped == 0:
        intel_pmu_read_event(S, E, i)
