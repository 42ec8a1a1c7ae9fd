"""Perf events in words, for results: plain Python that looks at the record and changes no event."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vpmu_emu.linux.perf.clocks import UNCORE_CAS_COUNT_RD, UNCORE_CLOCKTICKS
from vpmu_emu.linux.perf.times import (
    ATTR_EXCLUDE_GUEST,
    ATTR_EXCLUDE_HOST,
    ATTR_EXCLUDE_KERNEL,
    ATTR_EXCLUDE_USER,
    ATTR_PINNED,
)
from vpmu_emu.linux.perf.x86 import INTEL_FIXED_VLBR_EVENT
from vpmu_emu.linux.state import (
    CAUSE_NAMES,
    CTX_TASK,
    IDX_METRIC,
    IDX_VLBR,
    N_CLOSED,
    N_CORES,
    N_ERRORS,
    N_GP_PMC,
    OWNER_HOST,
    PERF_EVENT_STATE_ACTIVE,
    PERF_EVENT_STATE_INACTIVE,
    PERF_EVENT_STATE_OFF,
    PERF_TYPE_SOFTWARE,
    PERF_TYPE_UNCORE,
    STATE_NAMES,
)
from vpmu_emu.machine.clock import tsc_value
from vpmu_emu.machine.state import CLASS, N_CTR
from vpmu_emu.tables.events import EVENTS, LISTS, NOT_COUNTED, event_by_code, event_codes

_PERF_NAMES = [
    {code: name for name, code in reversed(event_codes(name).items())}
    | {event.code: event.perf[0] for event in EVENTS if event.perf and name in event.lists}
    for name in LISTS
]
_SOFTWARE_NAMES = (
    "cpu-clock", "task-clock", "page-faults", "context-switches", "cpu-migrations", "minor-faults",
    "major-faults", "alignment-faults", "emulation-faults", "dummy", "bpf-output", "cgroup-switches",
)  # fmt: skip
_UNCORE_NAMES = {
    int(UNCORE_CLOCKTICKS): "uncore/clockticks/",
    int(UNCORE_CAS_COUNT_RD): "uncore/cas_count_read/",
}
_MASK = (1 << 64) - 1


def counter_name(i: int) -> str:
    """Counter `i` of the record: pmc0 …, fixed0 …; lbr and metric0 …, which are none."""
    if i == IDX_VLBR:
        return "lbr"
    if i >= IDX_METRIC:
        return f"metric{i - IDX_METRIC}"
    return f"pmc{i}" if i < N_GP_PMC else f"fixed{i - N_GP_PMC}"


def _name(S: Any, pmu_type: int, config: int, attr: int) -> str:
    if pmu_type == PERF_TYPE_SOFTWARE:
        name = _SOFTWARE_NAMES[config]
    elif pmu_type == PERF_TYPE_UNCORE:
        name = _UNCORE_NAMES[config]
    else:
        name = _PERF_NAMES[int(S.config.events)].get(config, f"r{config:x}")
    flags = ""
    if attr & (ATTR_EXCLUDE_USER | ATTR_EXCLUDE_KERNEL):
        flags += "" if attr & ATTR_EXCLUDE_USER else "u"
        flags += "" if attr & ATTR_EXCLUDE_KERNEL else "k"
    if attr & (ATTR_EXCLUDE_HOST | ATTR_EXCLUDE_GUEST):
        flags += "" if attr & ATTR_EXCLUDE_GUEST else "G"
        flags += "" if attr & ATTR_EXCLUDE_HOST else "H"
    flags += "D" if attr & ATTR_PINNED else ""
    return name + (f":{flags}" if flags else "")


def event_name(S: Any, event: Any) -> str:
    """A perf event's attributes in the perf tool's words."""
    attr = (
        int(event.pinned) * ATTR_PINNED
        | int(event.exclude_user) * ATTR_EXCLUDE_USER
        | int(event.exclude_kernel) * ATTR_EXCLUDE_KERNEL
        | int(event.exclude_host) * ATTR_EXCLUDE_HOST
        | int(event.exclude_guest) * ATTR_EXCLUDE_GUEST
    )
    return _name(S, int(event.pmu_type), int(event.config), attr)


def hardware_counters(S: Any, cpu: int = 0) -> list[int]:
    """What the counters of a core hold now, by index of the record, and PERF_METRICS."""
    from vpmu_emu.machine.engine import read_counters

    found = np.zeros(N_CTR + 1, dtype=np.uint64)
    cores = S.cores.copy()  # who reads PERF_METRICS brings it up to date
    with np.errstate(over="ignore"):
        read_counters(cores[cpu], found)
    return [int(v) for v in found]


def _tsc(S: Any, t: Any) -> int:
    return tsc_value(S.cores[0], int(t))


def _nanoseconds(S: Any, t: int) -> int:
    return tsc_value(S.cores[0], t) * int(S.config.cyc2ns_mul) >> 31


def _free_running(S: Any, event: Any, cpu: int) -> int:
    # clocks.free_running(), for events on no counter
    if int(event.pmu_type) == PERF_TYPE_UNCORE:
        if int(event.config) == UNCORE_CLOCKTICKS:
            return tsc_value(S.cores[cpu], int(S.cores[cpu].t))
        return sum(int(core.total[ring, CLASS["fetched"]]) for core in S.cores for ring in (0, 1))
    return _nanoseconds(S, int(S.cores[cpu].t)) if int(event.config) <= 1 else 0


def _slots(event: Any, slots: int, metrics: int) -> int:
    # x86._topdown_value()
    metric = int(event.idx) - IDX_METRIC
    return slots if metric < 0 else slots * (metrics >> 8 * metric & 0xFF) // 0xFF


def event_count(S: Any, event: Any, hardware: Sequence[int], cpu: int = 0) -> int:
    """event->count as perf_event_read_value() would bring it up to date, without changing anything."""
    count = int(event.count)
    if int(event.state) != PERF_EVENT_STATE_ACTIVE:
        return count
    if int(event.pmu_type) in (PERF_TYPE_SOFTWARE, PERF_TYPE_UNCORE):
        return (count + _free_running(S, event, cpu) - int(event.prev_count)) & _MASK
    idx = int(event.idx)
    if int(event.topdown) and not int(event.stopped):
        grown = _slots(event, hardware[N_GP_PMC + 3], hardware[N_CTR])
        grown -= _slots(event, int(event.saved_slots), int(event.saved_metric))
        count += max(grown, 0)
    elif 0 <= idx < N_CTR and not int(event.stopped):
        pmu = S.cores[cpu].pmu
        mask = int(pmu.gp_mask if idx < N_GP_PMC else pmu.fixed_mask)
        count += (hardware[idx] - int(event.prev_count)) & mask
    return count & _MASK


def _context_cpu(S: Any, ctx: int) -> int:
    # times.ctx_cpu()
    if ctx < CTX_TASK:
        return ctx
    return next((cpu for cpu in range(N_CORES) if int(S.percpu[cpu].task_ctx) == ctx), -1)


def _live(S: Any, event: Any, hardware: Sequence[Sequence[int]]) -> tuple[int, int, int]:
    """Count and times of an event now, as a read would bring them up to date."""
    state, ctx = int(event.state), int(event.ctx)
    cpu = _context_cpu(S, ctx)
    enabled, running = int(event.total_time_enabled), int(event.total_time_running)
    if cpu >= 0 and not (event.exclude_guest and S.percpu[cpu].guest_ctx_loaded):
        leads = int(S.perf_events[int(event.leader)].state)
        wants = leads if leads <= PERF_EVENT_STATE_OFF else state
        delta = int(S.cores[cpu].t) - int(event.tstamp)
        enabled += delta if wants >= PERF_EVENT_STATE_INACTIVE else 0
        running += delta if wants >= PERF_EVENT_STATE_ACTIVE else 0
    at = max(cpu, 0)
    return event_count(S, event, hardware[at], at), enabled, running


def _uncounted(S: Any, event: Any) -> str:
    """Why the silicon counts nothing for an event of the core PMU; "" if it does."""
    config, names = int(event.config), LISTS[int(S.config.events)]
    if int(event.pmu_type) in (PERF_TYPE_SOFTWARE, PERF_TYPE_UNCORE) or int(event.topdown):
        return ""
    if config == int(INTEL_FIXED_VLBR_EVENT) or event_by_code(config, names):
        return ""
    return NOT_COUNTED


def _event(S: Any, event: Any, count: int, enabled: int, running: int) -> dict[str, Any]:
    ctx, pmc, idx = int(event.ctx), int(event.pmc), int(event.idx)
    state = int(event.state)
    on = state == PERF_EVENT_STATE_ACTIVE and idx >= 0
    return {
        "id": int(event.id),
        "name": event_name(S, event),
        "owner": "host" if int(event.owner) == OWNER_HOST else "kvm",
        "context": "cpu" if 0 <= ctx < CTX_TASK else "task",
        "cpu": ctx if 0 <= ctx < CTX_TASK else None if int(event.cpu) < 0 else int(event.cpu),
        "task": int(S.tasks[ctx - CTX_TASK].pid) if ctx >= CTX_TASK else None,
        "pmc": None if pmc < 0 else counter_name(pmc),
        "type": "pinned" if event.pinned else "flexible",
        "state": STATE_NAMES[state],
        "cause": CAUSE_NAMES[int(event.error_cause)],
        "tsc": _tsc(S, event.error_time) if event.error_cause else None,
        "count": (count + int(event.child_count)) & _MASK,
        "enabled": enabled + int(event.child_enabled) >> 4,
        "running": running + int(event.child_running) >> 4,
        "period": int(event.period) if event.sample_freq else int(event.sample_period),
        "freq": int(event.sample_freq),
        "samples": int(event.samples),
        "lost": int(event.lost),
        "throttles": int(event.throttles),
        "hw_idx": counter_name(idx) if on else None,
        "uncounted": _uncounted(S, event),
    }


def perf_report(S: Any) -> list[dict[str, Any]]:
    """Every perf event that exists: whose it is, state, cause and time of the last ERROR, count, times.

    `tsc` is a TSC, durations are in core cycles, `task` is a pid. Changes nothing.
    """
    hardware = [hardware_counters(S, cpu) for cpu in range(N_CORES)]
    found = [e for e in S.perf_events[: int(S.perf_rows)] if e.used]
    return [_event(S, e, *_live(S, e, hardware)) for e in found]


def closed_report(S: Any) -> list[dict[str, Any]]:
    """The last events of the host that were closed, oldest first, with the keys of `perf_report`.

    State, count and times are those of the moment of the close: nothing goes on in the log.
    """
    n = int(S.perf_closed_n)
    found = [S.perf_closed[k % N_CLOSED] for k in range(max(n - N_CLOSED, 0), n)]
    return [
        _event(S, e, int(e.count), int(e.total_time_enabled), int(e.total_time_running)) for e in found
    ]


def error_report(S: Any) -> list[dict[str, Any]]:
    """The last transitions to ERROR, oldest first: which event, when and why, and what came of it.

    `retries` counts vain attempts since, `revived` is when it was on a counter again, `released` when it
    was removed; times as the TSC showed them, None for never.
    """
    n = int(S.perf_error_n)
    found = []
    for k in range(max(n - N_ERRORS, 0), n):
        log = S.perf_errors[k % N_ERRORS]
        pmc, vcpu = int(log.pmc), int(log.vcpu)
        found.append(
            {
                "id": int(log.id),
                "name": _name(S, -1, int(log.config), int(log.attr)),
                "owner": "host" if int(log.owner) == OWNER_HOST else "kvm",
                "pmc": None if pmc < 0 else counter_name(pmc),
                "vcpu": None if vcpu < 0 else vcpu,
                "cause": CAUSE_NAMES[int(log.cause)],
                "tsc": _tsc(S, log.time),
                "retries": int(log.retries),
                "revived": _tsc(S, log.revived) if log.revived else None,
                "released": _tsc(S, log.released) if log.released else None,
            }
        )
    return found
