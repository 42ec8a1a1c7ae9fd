"""One run of a workload under the guest kernel, and what happened in a window of it; judges nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import numpy as np

from vpmu_emu.data import guests_dir
from vpmu_emu.errors import ConfigError
from vpmu_emu.tables.cpus import COST_NAMES

WORKLOADS = ("bitboard", "chase", "hash", "interp", "lz", "match", "matrix", "sort")
"""Of guests/workloads: those that compute; `fio` waits."""

#: Rows of isa/costs.toml that the guest's kernel spends, in the order of perf_kernel.c's `enum work`.
GUEST_WORK = (
    "nmi_entry", "irq_entry", "perf_event_nmi_handler", "perf_event_overflow", "timer_interrupt",
    "perf_adjust_freq_unthr_context", "perf_mux_hrtimer_handler", "event_sched_in", "event_sched_out",
)  # fmt: skip
GUEST_NUMBERS = (
    "units_done", "perf_nmis", "perf_nmi_ns", "perf_samples", "perf_unknown_nmis", "perf_rotations",
    "perf_throttles", "perf_ticks", "timer_interrupts",
)  # fmt: skip
#: Latencies of isa/cpus that are in the way of a guest's perf where it does not exit.
LATENCIES = ("wrmsr", "msr", "pmc", "interrupt")
START_MS = 2  # by then the slowest workload has begun; if not, more time is given
MOST_START_MS = 2000
STAMPS = 1 << 17  # of perf_kernel.c
SETTLED = 0.01
MOST_SETTLE_MS = 500


@attrs.frozen(kw_only=True)
class Task:
    """What to run: a workload with so many events of perf, under a vPMU.

    Attributes:
        workload: one of guests/workloads.
        events: of the guest's perf record; 0: no perf.
        options: of the run, as `System` takes them (vpmu, cpu, hz, settings …).
        defsym: parameters of the guest besides EVENTS.
        warm_ms, ms: virtual time before the window at least, and the window's length. With `units` instead
            the run ends when so many units are done, and the window begins with the first.
        settle_ms: the window begins when in two such stretches of time one after the other the guest took
            as many samples, within SETTLED; 0: at once.
        units: see there.
    """

    workload: str
    events: int
    options: dict[str, Any] = attrs.field(factory=dict)
    defsym: dict[str, int] = attrs.field(factory=dict)
    warm_ms: float = 0
    settle_ms: float = 0
    ms: float = 0
    units: int = 0


@attrs.frozen(kw_only=True)
class Window:
    """What happened between two moments of a run.

    Attributes:
        cycles: of the core, its length.
        core_khz: and how fast that runs.
        units: index of the first unit that ended in it, and of the first that did not.
        stamps: guest TSC in cycles of the core at the end of each unit of the whole run, from the first.
        work: pieces of work by row of isa/costs.toml, the host's and the guest kernel's together.
        unit_cycles: what one piece of each of these rows took.
        latencies: how often a latency of `LATENCIES` was in the way in the guest.
        latency_cycles: and what one took.
        cycles_by: cycles by part of the host's work, and the guest's.
        exits: VM exits by reason.
        msrs: reads, writes and exits of each MSR that the guest touched.
        numbers: counts of the guest's kernel (GUEST_NUMBERS), and of KVM (created, fastpaths, loads).
    """

    cycles: int
    core_khz: int
    units: tuple[int, int]
    stamps: Any
    work: dict[str, int]
    unit_cycles: dict[str, int]
    latencies: dict[str, int]
    latency_cycles: dict[str, float]
    cycles_by: dict[str, int]
    exits: dict[str, int]
    msrs: dict[str, dict[str, int]]
    numbers: dict[str, int]


class _Reader:
    """Reads a system's counts at a moment."""

    def __init__(self, system: Any) -> None:
        self.system = system
        self.symbols = system.program.symbols

    def words(self, name: str, count: int = 1) -> Any:
        data = self.system.read(self.symbols[name], 8 * count)
        return np.frombuffer(data, dtype=np.uint64).astype(np.int64)

    def now(self) -> dict[str, Any]:
        system = self.system
        S = system.S
        work: Any = np.sum([host.work for host in S.percpu], axis=0, dtype=np.int64)
        guest = dict(zip(GUEST_WORK, self.words("work_count", len(GUEST_WORK)), strict=True))
        numbers = {name: int(self.words(name)[0]) for name in GUEST_NUMBERS}
        for name in ("created", "resumed", "paused", "loads"):
            numbers[name] = int(S.vcpus[0].pmu[name])
        for name in ("entries", "fastpaths"):
            numbers[name] = int(S.vcpus[0][name])
        numbers["pmis_hw"] = sum(int(core.stats.pmis_hw) for core in system.cores)
        by_msr = system.msr_statistics()
        msrs = by_msr.values()
        exits = system.exits()
        passed = {
            "wrmsr": sum(m["writes"] for m in msrs) - exits.get("MSR_WRITE", 0),
            "msr": sum(m["reads"] for m in msrs) - exits.get("MSR_READ", 0),
            "pmc": sum(int(core.stats.rdpmcs) for core in system.cores) - exits.get("RDPMC", 0),
            "interrupt": numbers["perf_nmis"] + numbers["timer_interrupts"],
        }
        return {
            "t": max(int(core.t) for core in system.cores) >> 4,
            "work": {n: int(k) + int(guest.get(n, 0)) for n, k in zip(COST_NAMES, work, strict=True)},
            "latencies": {name: max(n, 0) for name, n in passed.items()},
            "cycles_by": system.cycles_by(),
            "exits": exits,
            "msrs": by_msr,
            "numbers": numbers,
        }


def _less(later: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    return {key: n - before.get(key, 0) for key, n in later.items()}


def workload_path(name: str) -> Path:
    """The source of a workload.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in (*WORKLOADS, "fio"):
        from vpmu_emu.options import known

        known("workloads", "workload", name, (*WORKLOADS, "fio"))
    return guests_dir() / "workloads" / f"{name}.s"


def measure(task: Task) -> Window:
    """Run a workload and say what happened in the window of its time.

    Raises:
        ConfigError: options that cannot be, or a guest that ended before the window did.
    """
    from vpmu_emu.load import load
    from vpmu_emu.system import System

    defsym = {"WARM_UNITS": 0, "UNITS": task.units or STAMPS * 64, "EVENTS": task.events, **task.defsym}
    system = System(load(workload_path(task.workload), defsym), **task.options)
    reader = _Reader(system)
    khz = system.model.core_khz
    begun = 0
    stop: Any
    while not reader.words("units_done")[0]:
        begun += START_MS
        stop = system.run(until=begun * khz)
        if stop.reason != "max-cycles" or begun > MOST_START_MS:
            said = system.serial[-200:].strip()
            raise ConfigError("overhead", f"{task.workload} did not begin: {stop}; {said}")
    if not task.units and task.warm_ms:
        _run_to(system, task, int((begun + task.warm_ms) * khz))
    warm = task.warm_ms + _settled(system, reader, task, begun + task.warm_ms)
    before = reader.now()
    _run_to(system, task, None if task.units else int((begun + warm + task.ms) * khz))
    after = reader.now()
    done = min(after["numbers"]["units_done"], STAMPS)
    stamps = reader.words("stamps", done) * (khz / system.model.tsc_khz)
    costs = system.S.config.costs
    return Window(
        cycles=after["t"] - before["t"],
        core_khz=khz,
        units=(before["numbers"]["units_done"], after["numbers"]["units_done"]),
        stamps=stamps,
        work=_less(after["work"], before["work"]),
        unit_cycles={name: int(cost[0]) for name, cost in zip(COST_NAMES, costs, strict=True)},
        latencies=_less(after["latencies"], before["latencies"]),
        latency_cycles={name: system.model.latency_of(name) / 16 for name in LATENCIES},
        cycles_by=_less(after["cycles_by"], before["cycles_by"]),
        exits=_less(after["exits"], before["exits"]),
        msrs={
            name: _less(counts, before["msrs"].get(name, {})) for name, counts in after["msrs"].items()
        },
        numbers=_less(after["numbers"], before["numbers"]),
    )


def _settled(system: Any, reader: _Reader, task: Task, at: float) -> float:
    """Run on until the guest samples steadily; the time that it took, in ms."""
    took, last = 0.0, -1
    while task.settle_ms and task.events and took < MOST_SETTLE_MS:
        before = reader.words("perf_samples")[0]
        took += task.settle_ms
        _run_to(system, task, int((at + took) * system.model.core_khz))
        taken = reader.words("perf_samples")[0] - before
        if abs(taken - last) <= max(SETTLED * last, 1):
            break
        last = taken
    return took


def _run_to(system: Any, task: Task, until: int | None) -> None:
    if until is None:
        stop = system.run(until=MOST_START_MS * 100 * system.model.core_khz)
        fine = stop.reason == "debug-exit" and stop.info == 0
    else:
        stop = system.run(until=until)
        fine = stop.reason == "max-cycles"
    if not fine:
        said = system.serial[-300:].strip()
        what = f"{task.workload} with {task.events} events"
        raise ConfigError("overhead", f"{what} ended early: {stop}; {said}")
