"""What perf in a guest costs, predicted: cells of workloads, vPMUs and events, with intervals.

A cell is simulated once, at typical costs. What happened in its window is counted by row of
isa/costs.toml, and an interval is what the same counts give with other costs: a guest that samples at a
frequency takes as many PMIs, ticks and rotations a second whatever they cost, so the share of its time that
a row takes is proportional to the row's cost, and what is left of the time is the workload's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from vpmu_emu.errors import ConfigError
from vpmu_emu.lab.measure import (
    GUEST_WORK,
    LATENCIES,
    WORKLOADS,
    Task,
    Window,
    measure,
    workload_path,
)
from vpmu_emu.lab.pool import run_all
from vpmu_emu.numerals import shown, whole
from vpmu_emu.options import Options, known, pairs
from vpmu_emu.system import host_model
from vpmu_emu.tables.assumptions import Assumption
from vpmu_emu.tables.cpus import LATENCIES as ALL_LATENCIES
from vpmu_emu.tables.cpus import CpuModel
from vpmu_emu.tables.figures import FIGURES
from vpmu_emu.tables.modes import SWITCH_POLICIES

CASES: dict[str, int] = {"basic-sampling": 6, "multiplex-sampling": 10}
"""The cases of the published table: events of `perf record -F 1000 -e N×instructions -a --overwrite`."""

DRAWS = 4000
#: A workload that gets less than this of its time has stopped; below it shares mean nothing.
STARVED = 0.002
#: The 5 and 95 % points of a normal distribution lie so many deviations from its middle.
Z95 = 1.6448536269514722
MOST_MS = 150  # as many units as the guest kernel has room to stamp
LEAST_RATE = 300  # below it frequencies settle later than units can be stamped
LEAST_HZ, MOST_HZ = 100, 10_000  # CONFIG_HZ, and more for who wants to see it
MOST_RATE = 100_000  # samples a second that perf allows: sysctl perf_event_max_sample_rate
#: Parameters of guests/include/perf_kernel.inc that make sense here; the others follow from the question.
GUEST_PARAMETERS = ("FREQ", "EVENT", "KERNEL", "WATCHDOG", "TSC_KHZ", "IO_HZ")
OURS = ("HZ", "SEED", "EVENTS", "UNITS", "WARM_UNITS")
#: Latencies of the guest are draws of the same silicon as what the host pays for the same instruction.
SAME_SILICON = {"wrmsr": "wrmsr", "msr": "rdmsr", "pmc": "rdpmc"}


@attrs.frozen(kw_only=True)
class Design:
    """A vPMU, and how it is set up.

    Attributes:
        vpmu: a mode.
        options: more of the run's options.
        label: what the table calls it.
        published: end of the name of its rows of isa/figures.toml, "" if nothing was published.
    """

    vpmu: str
    options: dict[str, Any] = attrs.field(factory=dict)
    label: str = ""
    published: str = ""


def designs(policies: Sequence[str] = ()) -> list[Design]:
    """Those of the published table, then `mediated` as merged, and with each policy of the switch."""
    return [
        Design(vpmu="emulated", label="emulated", published="emulated"),
        Design(
            vpmu="passthrough", options={"all_passthrough": True}, label="passthrough --all-passthrough",
            published="all_passthrough",
        ),
        Design(vpmu="passthrough", label="passthrough", published="passthrough"),
        Design(vpmu="mediated", label="mediated"),
        *(
            Design(vpmu="mediated", options={"switch": policy}, label=f"mediated --switch {policy}")
            for policy in policies
        ),
    ]  # fmt: skip


@attrs.frozen(kw_only=True)
class Question:
    """What is asked: everything about the runs that is not the design or the case.

    Attributes:
        designs, cases, workloads, seeds: what to run, all with each other.
        cpu: the model of the host.
        hz: ticks a second of the guest's kernel and of the host's.
        defsym: other parameters of the guest kernel (FREQ, KERNEL, WATCHDOG, EVENT …).
        settings: as `--set`: costs, latencies and shapes that are not those of the tables.
        options: more options of every run.
        warm_ms: virtual time for the frequencies to settle; if not said, until they have.
        ms: length of the window after that: at least 30 sampling periods, and three turns of the
            multiplexing with more events than counters.
        draws, seed: how many random sets of costs make an interval, and the seed of those.
    """

    designs: Sequence[Design] = attrs.field(factory=designs)
    cases: Mapping[str, int] = attrs.field(factory=lambda: dict(CASES))
    workloads: Sequence[str] = WORKLOADS
    seeds: Sequence[int] = (1,)
    cpu: str = "spr"
    hz: tuple[int, int] = (250, 250)
    defsym: Mapping[str, int] = attrs.field(factory=dict)
    settings: Mapping[str, int] = attrs.field(factory=dict)
    options: Mapping[str, Any] = attrs.field(factory=dict)
    warm_ms: float | None = None
    ms: float | None = None
    draws: int = DRAWS
    seed: int = 1

    def times(self, events: int) -> tuple[float, float, float]:
        """Warm-up, stretches that settling is judged by, and window of a case, in ms of virtual time."""
        model = host_model(self.cpu, self.settings)
        counters = model.gp + min(model.fixed, 1)  # one of the fixed ones counts instructions
        period = 1000 / self.defsym.get("FREQ", 1000)
        turns = 3 * events * 1000 / self.hz[0] if events > counters else 0.0
        ms = self.ms if self.ms is not None else max(32 * period, turns)
        warm = self.warm_ms if self.warm_ms is not None else 8 * period
        settle = max(10 * period, turns / 6) if self.warm_ms is None else 0.0
        return warm, settle, ms

    def task(self, design: Design, workload: str, seed: int, events: int, units: int = 0) -> Task:
        """One run."""
        warm, settle, ms = (0.0, 0.0, 0.0) if units else self.times(events)
        return Task(
            workload=workload,
            events=events,
            # Every processor has a run, and each is over before native code would pay for the making.
            options={
                "vpmu": design.vpmu, "cpu": self.cpu, "hz": self.hz[1], "nohz": "idle",
                "engine": "interpreter",
                "settings": dict(self.settings), **design.options, **self.options,
            },
            # The guest's kernel is Linux too: what its functions cost is the host's row.
            defsym={"HZ": self.hz[0], "SEED": seed, **_guest_costs(self.cpu, self.settings), **self.defsym},
            warm_ms=warm, settle_ms=settle, ms=ms, units=units,
        )  # fmt: skip


def _guest_costs(cpu: str, settings: Mapping[str, int]) -> dict[str, int]:
    model = host_model(cpu, settings)
    return {f"COST_{row}": model.cost(row).cycles[1] for row in GUEST_WORK}


def check(question: Question, design: Design) -> None:
    """Whether a design can be run so.

    Raises:
        ConfigError: it cannot.
    """
    Options.of(question.task(design, question.workloads[0], 1, 0).options).check()


@attrs.frozen(kw_only=True)
class Share:
    """Where the time of one window went, as shares of it.

    Attributes:
        pure: the workload itself.
        rows: each row of isa/costs.toml, and each latency of the guest's MSR accesses and interrupts.
        rest: what is neither: the code of the guest's kernel.
    """

    pure: float
    rows: dict[str, float]
    rest: float


def _rows(window: Window) -> dict[str, float]:
    shares: dict[str, float] = {}
    for name, n in window.work.items():
        if n:
            shares[name] = n * window.unit_cycles[name] / window.cycles
    for name, n in window.latencies.items():
        if n:
            row = SAME_SILICON.get(name, f"model.{name}")
            shares[row] = shares.get(row, 0.0) + n * window.latency_cycles[name] / window.cycles
    return shares


def _time_of(window: Window, first: int, last: int) -> float:
    return float(window.stamps[last - 1] - window.stamps[first - 1])


def shares(alone: Window, under: Window) -> tuple[Share, Share]:
    """Of a workload alone, and of the same work under perf.

    The pure time of a unit of work is what it takes alone, less what the rows of the host and of the
    guest's tick take there.

    Args:
        alone: a run without perf that did all units of the other one.
        under: the run with perf.

    Raises:
        ConfigError: there is no whole unit in the window.
    """
    first, last = max(under.units[0], 1), min(under.units[1], len(under.stamps), len(alone.stamps))
    if last - first < 1:
        raise ConfigError("overhead", "the workload did not get on at all", "a longer window: --ms")
    rows_alone = _rows(alone)
    pure_alone = 1 - sum(rows_alone.values())
    took = _time_of(under, first, last) if last - first > 1 else float(under.cycles)
    pure = _time_of(alone, first, last) * pure_alone / took
    rows = _rows(under)
    return (
        Share(pure=pure_alone, rows=rows_alone, rest=0.0),
        Share(pure=pure, rows=rows, rest=1 - pure - sum(rows.values())),
    )


def left_for_work(share: Share, factors: Mapping[str, Any]) -> Any:
    """What is left of the time if each row costs `factors` times what it did."""
    taken: Any = share.rest
    for name, part in share.rows.items():
        taken = taken + part * factors.get(name, 1.0)
    return np.maximum(1 - taken, STARVED)


@attrs.frozen(kw_only=True)
class Cell:
    """One cell of the table: a design in a case.

    Attributes:
        design, case: which.
        alone, under: shares of each workload and seed, without perf and with it.
        windows: what happened under perf, one window each.
        computes: whether all workloads compute, as those of the published table, and wait for nothing.
    """

    design: Design
    case: str
    alone: Sequence[Share]
    under: Sequence[Share]
    windows: Sequence[Window]
    computes: bool = True

    def overhead(self, factors: Mapping[str, Any] | None = None) -> Any:
        """Percent of the score that perf costs; the score is the geometric mean over the workloads."""
        logs = [
            np.log(left_for_work(under, factors or {})) - np.log(left_for_work(alone, factors or {}))
            for alone, under in zip(self.alone, self.under, strict=True)
        ]
        return 100 * (1 - np.exp(np.mean(logs, axis=0)))

    def published(self) -> float | None:
        """What was measured, in percent; None where nothing was."""
        row = FIGURES.get(f"rfc_{self.case.split('-')[0]}_{self.design.published}")
        return None if row is None or not self.computes else row.value[0]

    def rate(self, *names: str) -> float:
        """Of a number of the windows: so many a second of virtual time."""
        n = sum(window.numbers[name] for window in self.windows for name in names)
        return n / self.seconds()

    def seconds(self) -> float:
        """Virtual time of all windows."""
        return sum(window.cycles / (1000 * window.core_khz) for window in self.windows)

    def exits(self) -> int:
        """VM exits of all windows."""
        return sum(sum(window.exits.values()) for window in self.windows)

    def where(self) -> dict[str, float]:
        """Shares of the time: the workload, the guest's kernel, and each part of the host's work."""
        whole = sum(window.cycles for window in self.windows)
        parts: dict[str, float] = {}
        for window, share in zip(self.windows, self.under, strict=True):
            for name, cycles in window.cycles_by.items():
                parts[name] = parts.get(name, 0.0) + cycles / whole
            parts["workload"] = parts.get("workload", 0.0) + share.pure * window.cycles / whole
        # What a workload waits for is part of its work.
        guest = parts.pop("guest") + parts.pop("idle")
        work = parts.pop("workload")
        return {"workload": work, "guest kernel": guest - work, **parts}


def intervals(model: CpuModel) -> dict[str, tuple[float, float]]:
    """Of each row that has one, (low, high) as factors of its typical value."""
    found: dict[str, tuple[float, float]] = {}
    for cost in model.costs:
        low, typical, high = cost.cycles
        if typical:
            found[cost.name] = (low / typical, high / typical)
    for name in LATENCIES:
        low, typical, high = model.latencies[ALL_LATENCIES.index(name)]
        if name not in SAME_SILICON and typical:
            found[f"model.{name}"] = (low / typical, high / typical)
    return found


def drawn(model: CpuModel, draws: int, seed: int) -> dict[str, Any]:
    """Independent random factors for each row, of which its low and high are the 5 and the 95 % point.

    Logarithms are normal on both sides of the typical value, which is the median.
    """
    random = np.random.default_rng(seed)
    factors: dict[str, Any] = {}
    for name, (low, high) in sorted(intervals(model).items()):
        z = random.standard_normal(draws) / Z95
        factors[name] = np.where(z > 0, high**z, (1 / low) ** z)
    return factors


def ask(
    question: Question, jobs: int | None = None, progress: Callable[[int, int], None] = lambda *_: None
) -> list[Cell]:
    """Run all that a question needs, on all processors.

    Raises:
        ConfigError: what no run can be asked, or a guest that did not get through.
    """
    # The longest first, so that no processor waits long for the last.
    runs = [
        (design, case, workload, seed)
        for case in sorted(question.cases, key=lambda case: -question.cases[case])
        for workload in question.workloads
        for design in question.designs
        for seed in question.seeds
    ]
    tasks = [
        question.task(design, workload, seed, question.cases[case])
        for design, case, workload, seed in runs
    ]
    # Alone, each design does as many units as its perf runs did at most: known when those have ended.
    places = {_alone(design): design for design in question.designs}
    extra = len(places) * len(question.workloads) * len(question.seeds)
    windows = run_all(measure, tasks, jobs, lambda done, of: progress(done, of + extra))
    most: dict[tuple[str, str, int], int] = {}
    for (design, _, workload, seed), window in zip(runs, windows, strict=True):
        key = (_alone(design), workload, seed)
        most[key] = max(most.get(key, 0), window.units[1] + 1)
    alone_tasks = [
        question.task(places[name], workload, seed, 0, units=units)
        for (name, workload, seed), units in most.items()
    ]
    alone = dict(
        zip(
            most,
            run_all(
                measure, alone_tasks, jobs, lambda done, of: progress(len(tasks) + done, len(tasks) + of)
            ),
            strict=True,
        )
    )
    cells = []
    for case in question.cases:
        for design in question.designs:
            under, single, mine = [], [], []
            for (d, c, workload, seed), window in zip(runs, windows, strict=True):
                if d is design and c == case:
                    one, other = shares(alone[_alone(design), workload, seed], window)
                    single.append(one)
                    under.append(other)
                    mine.append(window)
            computes = set(question.workloads) <= set(WORKLOADS)
            cells.append(
                Cell(
                    design=design, case=case, alone=single, under=under, windows=mine, computes=computes
                )
            )  # fmt: skip
    return cells


def _alone(design: Design) -> str:
    """Designs that are the same to a guest that leaves its PMU alone have one run without perf."""
    return f"{design.vpmu} {design.options.get('switch', '')}"


def sensitivity(cell: Cell) -> dict[str, float]:
    """What doubling each row adds to a cell, in points, the largest first."""
    middle = float(cell.overhead())
    names = {name for share in (*cell.under, *cell.alone) for name in share.rows}
    found = {name: float(cell.overhead({name: 2.0})) - middle for name in names}
    return dict(sorted(found.items(), key=lambda item: -abs(item[1])))


def question_of(asked: Mapping[str, Any]) -> Question:
    """What the command line asks, or a caller with its words.

    Raises:
        ConfigError: a workload, a number or a setting that there is not.
    """
    names = tuple(name.strip() for name in (asked.get("workloads") or ",".join(WORKLOADS)).split(","))
    for name in names:
        workload_path(name)
    numbers = [whole(word.strip()) for word in str(asked.get("seeds") or 1).split(",")]
    seeds = [n for n in numbers if n is not None]
    if len(seeds) != len(numbers):
        raise ConfigError("seeds", f"{shown(asked['seeds'])} is not a list of numbers", "such as 1,2,3")
    for key in ("warm_ms", "ms"):
        value = asked.get(key)
        if value is not None and not 1 <= value <= MOST_MS:
            message = f"{value:g} ms is not in the range"
            raise ConfigError(key.removesuffix("_ms"), message, f"1 to {MOST_MS}")
    hz = (asked.get("guest_hz") or 250, asked.get("hz") or 250)
    if not LEAST_HZ <= hz[0] <= MOST_HZ:
        raise ConfigError("guest-hz", f"{hz[0]} is not in the range", f"{LEAST_HZ} to {MOST_HZ}")
    question = Question(
        designs=designs(SWITCH_POLICIES if asked.get("every") else ()),
        workloads=names,
        seeds=seeds,
        cpu=asked.get("cpu") or "spr",
        hz=hz,
        defsym=pairs("defsym", asked.get("defsym") or {}),
        settings=pairs("set", asked.get("settings") or {}),
        warm_ms=asked.get("warm_ms"),
        ms=asked.get("ms"),
        draws=asked.get("draws") or DRAWS,
    )
    for name in question.defsym:
        if name in OURS:
            message = f"{name} is what this command sets itself"
            raise ConfigError("defsym", message, " ".join(GUEST_PARAMETERS))
        known("defsym", "parameter of the guest kernel", name, GUEST_PARAMETERS)
    rate = question.defsym.get("FREQ", 1000)
    if not LEAST_RATE <= rate <= MOST_RATE:
        raise ConfigError("defsym", f"FREQ={rate} is not in the range", f"{LEAST_RATE} to {MOST_RATE}")
    for design in question.designs:  # refused before anything is compiled
        check(question, design)
    return question


def instead(question: Question, assumption: Assumption) -> Question:
    """The same question under the other answer to an assumption."""
    other = dict(assumption.instead)
    return attrs.evolve(
        question,
        designs=[design for design in question.designs if design.vpmu not in assumption.never],
        hz=(other.get("guest_hz", question.hz[0]), other.get("host_hz", question.hz[1])),
        defsym={**question.defsym, **other.get("defsym", {})},
        options={**question.options, **other.get("options", {})},
    )
