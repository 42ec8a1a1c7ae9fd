"""Many runs of one guest and a row of each: the same wherever, and in whatever order, they were made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import attrs

from vpmu_emu.asm import Program
from vpmu_emu.checks import MOST_CYCLES, evaluate
from vpmu_emu.checks.language import UnknownValue, read_value
from vpmu_emu.data import guests_dir
from vpmu_emu.errors import VpmuError
from vpmu_emu.lab.cluster import Cluster, package
from vpmu_emu.lab.pool import Answer, check_jobs, run_each
from vpmu_emu.lab.results import Head, Results, Row, check_pyarrow, place_of, read_results, table_of
from vpmu_emu.lab.spec import Measure, Point, Spec, read_spec
from vpmu_emu.load import load
from vpmu_emu.options import Options
from vpmu_emu.report import Table
from vpmu_emu.system import Result, System, run

OK, FAILED = "ok", "failed"
LIMITS = {"max-cycles": "max_cycles", "max-insns": "max_insns"}
"""Ends of a run that are as asked, if the option was given."""
LEFT_OUT = ("schema", "engine", "jit_s", "wall_s", "stop_line", "unsupported", "why", "notes")
"""Of a result, what is of the machine that made it or of the program's folder, and lists of sentences."""
FEW = 12  # rows of a table at the end

Progress = Callable[[int, int, int], None]


@attrs.frozen
class Sweep:
    """What there is of a sweep.

    Attributes:
        path: the file of results.
        head: what they are of.
        rows: one for each point that was run, sorted by point.
        points: how many the sweep has.
        ran: how many of them were run now.
    """

    path: Path
    head: Head
    rows: tuple[Row, ...] = attrs.field(repr=False)
    points: int
    ran: int

    @property
    def failed(self) -> int:
        """How many rows are of runs that failed."""
        return sum(row["status"] == FAILED for row in self.rows)

    def table(self) -> Any:
        """The rows as a `pyarrow.Table`."""
        return table_of(self.rows, self.head)

    def to_json(self) -> dict[str, Any]:
        """How it stands, as plain data."""
        return {
            "schema": 1, "out": str(self.path), "points": self.points, "rows": len(self.rows),
            "ok": len(self.rows) - self.failed, "failed": self.failed, "ran": self.ran,
        }  # fmt: skip


# --- one point --------------------------------------------------------------------------------------------


@attrs.frozen
class Task:
    """One run, ready to be made anywhere: nothing in it is a file."""

    program: Program | None
    options: Options
    limits: tuple[str, ...]


def measured(measures: Sequence[Measure], task: Task) -> tuple[dict[str, Any], str]:
    """Run a task: what is measured, and why the run counts as failed, "" if it does not.

    Raises:
        VpmuError: it cannot be run.
    """
    result = run(task.program, task.options)
    stop = result.values["stop"]
    fine = stop in ("halted", *task.limits) or (stop == "debug-exit" and not result.values["exit_code"])
    why = "" if fine else f"ended by {stop}"
    if stop == "debug-exit":
        why = why and f"exit code {result.values['exit_code']}"
    elif stop == "max-cycles" and why:
        why = f"did not end within {task.options.max_cycles:,} cycles; give max-cycles"
    if not measures:
        return dict(_leaves(result.values)), why
    return {measure.name: _measured(measure, result) for measure in measures}, why


def _measured(measure: Measure, result: Result) -> Any:
    try:
        return evaluate(read_value(measure.text, result.program), result.program, result)
    except UnknownValue:
        return None  # this machine has no such thing


def _leaves(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every number and word of a result by its path; lists of things with parts have no fixed place."""
    for key, value in values.items():
        if not above and key in LEFT_OUT:
            continue
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{key}.")
        elif isinstance(value, list):
            if not any(isinstance(each, Mapping | list) for each in value):
                yield from ((f"{above}{key}.{n}", each) for n, each in enumerate(value))
        elif value is not None:
            yield f"{above}{key}", value


# --- all of them ------------------------------------------------------------------------------------------


class Lab:
    """A spec with its programs in memory: makes tasks of its points, and rows of answers."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self._programs: dict[Any, Any] = {}

    def head(self) -> Head:
        """What the rows are of."""
        names = tuple(measure.name for measure in self.spec.measures) or None
        return Head(*package(), self.spec.facts, self.spec.columns, names)

    def task(self, point: Point) -> Task:
        """What a worker needs of a point.

        Raises:
            VpmuError: its options contradict each other, or the program does not assemble with them.
        """
        options = self.spec.options(point)
        limits = tuple(stop for stop, key in LIMITS.items() if getattr(options, key) is not None)
        if options.max_cycles is None:
            options = attrs.evolve(options, max_cycles=MOST_CYCLES)
        options = attrs.evolve(options, **self._loaded(options))
        return Task(self._program(options.defsym), options, limits)

    def _program(self, symbols: Mapping[str, int]) -> Program | None:
        """The program; with these symbols, unless a worker can define them by itself."""
        path = self.spec.program
        if path is None:
            return None
        program: Program = self._kept((path,), partial(load, path, symbols))
        others = [Path(name) for name in program.source if Path(name) != path]
        if all(each.is_relative_to(guests_dir() / "include") for each in others):
            return program
        found: Program = self._kept((path, *sorted(symbols.items())), partial(load, path, symbols))
        return found

    def _loaded(self, options: Options) -> dict[str, Any]:
        """Files of options as what is in them: a worker may be on another machine."""
        from vpmu_emu.setup.filterfile import load_filter
        from vpmu_emu.setup.msrfilter import load_msr_filter
        from vpmu_emu.setup.saved import load_saved
        from vpmu_emu.tables.cpus import cpu

        found: dict[str, Any] = {}
        if isinstance(options.filter, str):
            names = cpu(options.cpu).events
            path = options.filter
            found["filter"] = self._kept((path, names), partial(load_filter, path, names))
        if isinstance(options.msr_filter, str):
            path = options.msr_filter
            found["msr_filter"] = self._kept((path, "msr"), partial(load_msr_filter, path))
        if options.host:
            found["host"] = tuple(self._kept((path,), partial(load, path)) for path in options.host)
        if isinstance(options.restore, str):
            found["restore"] = self._kept((options.restore, "vm"), partial(load_saved, options.restore))
        return found

    def _kept(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._programs:
            if len(self._programs) >= 64:
                self._programs.clear()
            self._programs[key] = make()
        return self._programs[key]

    def check(self) -> None:
        """Whether at least one point can be run.

        Raises:
            VpmuError: what is wrong with the first one, if something is with all of them.
        """
        refused: VpmuError | None = None
        for point in self.spec.points():
            try:
                task = self.task(point)
                System(task.program, task.options, ready=_looked)
            except _LookedError:
                return
            except VpmuError as error:
                refused = refused or error
        assert refused is not None
        raise VpmuError(f"{self.spec.name}: no point can be run; the first one: {self._text(str(refused))}")

    def row(self, point: Point, answer: Answer) -> Row:
        """The row of a point."""
        values, why = answer.value if answer.value is not None else ({}, "")
        error = self._text(answer.error or why)
        own = {"point": point.id, **point.parameters}
        state = {"status": FAILED if error else OK, "error": error or None}
        return {**values, **own, **state}

    def _text(self, text: str) -> str:
        # No folder of this machine: the row is the same on another one.
        for folder in (self.spec.folder, guests_dir()):
            text = text.replace(f"{folder}/", "")
        return text


class _LookedError(Exception):
    """Nothing is wrong with a point, as far as can be told before it runs."""


def _looked() -> None:
    raise _LookedError


def sweep(
    spec: str | Path | Mapping[str, Any] | Spec,
    out: str | Path | None = None,
    *,
    jobs: int | None = None,
    dask: str | None = None,
    retry_failed: bool = False,
    progress: Progress = lambda *_: None,
    ready: Callable[[Sequence[str]], None] | None = None,
) -> Sweep:
    """Run what a sweep has and `out` has not; the results are there as Parquet, however this ends.

    Args:
        spec: the file SPEC.toml, or the same as plain data, files relative to the current folder.
        out: the file of results, which ends with .parquet, or a folder; None: beside nobody, in the
            current folder, by the name of the spec.
        jobs: processes; None: one for each processor.
        dask: the address of a Dask scheduler, to run there instead.
        retry_failed: run again what failed before.
        progress: called with (rows that are there, of how many, how many of them failed).
        ready: called with the modes once nothing is wrong with what was asked, and before compiled code
            is needed; None: what is missing is compiled.

    Raises:
        VpmuError: whatever is wrong with what is asked, or with where it is written; what was made is kept.
        KeyboardInterrupt: Ctrl-C; likewise.
    """
    check_pyarrow()
    number = check_jobs(jobs)
    if jobs is not None and dask is not None:
        raise VpmuError("jobs and dask are two ways to run a sweep")
    asked = spec if isinstance(spec, Spec) else read_spec(spec)
    lab = Lab(asked)
    lab.check()
    path = place_of(out if out is not None else usual_place(asked))
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster(dask)) if dask is not None else None
        results = stack.enter_context(Results(path, lab.head()))
        ran = _run(lab, results, cluster, number, retry_failed, progress, ready or _build)
    rows = tuple(results.rows[key] for key in sorted(results.rows))
    return Sweep(path, results.head, rows, len(asked), ran)


def _run(
    lab: Lab,
    results: Results,
    cluster: Cluster | None,
    jobs: int,
    retry_failed: bool,
    progress: Progress,
    ready: Callable[[Sequence[str]], None],
) -> int:
    """Run what is missing; how many points were run."""
    spec = lab.spec
    there = {k for k, row in results.rows.items() if not (retry_failed and row["status"] == FAILED)}
    todo = len(spec) - len(there)
    failed = sum(results.rows[key]["status"] == FAILED for key in there)
    if todo and cluster is not None:
        cluster.prepare(spec.modes)
    elif todo:
        ready(spec.modes)
    progress(len(there), len(spec), failed)
    if not todo:
        return 0
    asked: dict[int, Point] = {}
    numbers = count()
    refused: list[Row] = []

    def tasks() -> Iterator[Task]:
        for point in spec.points():
            if point.id in there:
                continue
            try:
                task = lab.task(point)
            except VpmuError as error:
                refused.append(lab.row(point, Answer(-1, error=str(error), refused=True)))
                continue
            asked[next(numbers)] = point
            yield task

    def answers() -> Iterator[Row]:
        function = partial(measured, spec.measures)
        elsewhere = cluster is not None and cluster.run_each(function, tasks())
        for answer in elsewhere or run_each(function, tasks(), jobs):
            yield lab.row(asked.pop(answer.index), answer)
            while refused:
                yield refused.pop()
        yield from refused

    for done, row in enumerate(answers(), 1):
        results.add(row)
        failed += row["status"] == FAILED
        progress(len(there) + done, len(spec), failed)
    return todo


def _build(modes: Sequence[str]) -> None:
    from vpmu_emu import build

    build.prepare(modes)


def usual_place(spec: Spec) -> Path:
    """The file of results, if the user names none: in the current folder, by the name of the spec."""
    return Path(f"{Path(spec.name).stem}.parquet")


def found(out: str | Path) -> Sweep:
    """The results that are there, of a sweep that may be under way.

    Raises:
        ConfigError: there are none.
    """
    path, head, rows = read_results(out)
    return Sweep(path, head, tuple(rows), len(rows), 0)


# --- in words ---------------------------------------------------------------------------------------------


def design(spec: Spec) -> list[Table]:
    """How many points a sweep has, and the first of them."""
    points = [point for point, _ in zip(spec.points(), range(FEW))]
    heads = ("point", *spec.columns)
    rows = tuple((point.id, *(_shown(point.parameters[c]) for c in spec.columns)) for point in points)
    more = f", the first {len(points)}" if len(points) < len(spec) else ""
    return [Table(f"{len(spec):,} points{more}", heads, rows)]


def _shown(value: Any) -> Any:
    return str(value) if isinstance(value, bool) else value


def summary(sweep: Sweep) -> list[Table]:
    """What there is: how many rows, what failed and why, and the range of what was measured."""
    counts = (
        ("points", sweep.points), ("run now", sweep.ran), ("ok", len(sweep.rows) - sweep.failed),
        ("failed", sweep.failed), ("results", str(sweep.path)),
    )  # fmt: skip
    tables = [Table("", ("", ""), counts)]
    why: dict[str, int] = {}
    for row in sweep.rows:
        if row["status"] == FAILED:
            why[row["error"]] = why.get(row["error"], 0) + 1
    if why:
        most = sorted(why.items(), key=lambda item: (-item[1], item[0]))
        rows = [(times, error.splitlines()[0]) for error, times in most[:FEW]]
        tables.append(Table("Failed", ("points", "why"), tuple(rows)))
    names = sweep.head.measures
    rows = [row for name in names or () if (row := _range(name, sweep.rows))]
    if rows:
        tables.append(Table("Measured", ("", "least", "median", "most", "points"), tuple(rows)))
    return tables


def _range(name: str, rows: Sequence[Row]) -> Any:
    values = sorted(v for row in rows if isinstance(v := row.get(name), int | float))
    if not values:
        return None
    return (name, values[0], values[len(values) // 2], values[-1], len(values))


def csv(sweep: Sweep) -> str:
    """The rows as comma-separated values."""
    import io
    from csv import writer

    table = sweep.table()
    text = io.StringIO()
    out = writer(text, lineterminator="\n")
    out.writerow(table.column_names)
    out.writerows(zip(*(column.to_pylist() for column in table.columns), strict=True))
    return text.getvalue()
