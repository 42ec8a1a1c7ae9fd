"""The ring goes to disk whenever compiled code has come back; what it had no room for is counted."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import numpy as np

from vpmu_emu.errors import LoadError
from vpmu_emu.linux.trace_kinds import TR_SCHED_SWITCH
from vpmu_emu.machine.ring import TR_EXCEPTION, TR_VM_ENTRY
from vpmu_emu.machine.vmcs import INTR_HAS_ERROR, INTR_VALID

# A slice of a recorded run has so many 1/16 cycles for each event that the ring has room for: neither an
# instruction nor the host's work writes events faster.
RING_TICKS = 16 * 4
SAMPLED, MOST = 256, 512
LOOKED = 64  # events of other CPUs between two of one
BATCH = 1 << 16  # events that are in memory at one time
COMM = 15  # characters of a task's name that the kernel keeps


class Task(NamedTuple):
    """A thread: its id, its name as the kernel keeps it, (VM, id) of the vCPU that it runs or ran last."""

    pid: int
    comm: str
    vcpu: tuple[int, int] = (0, 0)


_HAS_ERROR = int(INTR_VALID | INTR_HAS_ERROR)
IDLE = Task(0, "<idle>")


class Moment(NamedTuple):
    """An event of the ring, with when it was and who ran.

    Attributes:
        ns: nanoseconds since the start; t: the same in 1/16 cycle.
        lost: how many events are missing right before it.
        task: who ran on the CPU; comes: who runs there now, at a sched_switch.
        error: error code of the exception that a VM entry injects, where the ring has its delivery.
        The others are as in the ring (docs/map.md: machine/ring.py, linux/trace_kinds.py).
    """

    ns: int
    t: int
    cpu: int
    kind: int
    rip: int
    a: int
    b: int
    c: int
    task: Task
    lost: int
    comes: Task = IDLE
    error: int | None = None


@attrs.frozen
class Who:
    """Whose an event is, from one on.

    Attributes:
        at: index of that event.
        tasks: by their row in the record.
        current: row of the task that each CPU was running then, -1 idle; None: as the events before say.
    """

    at: int
    tasks: tuple[Task, ...]
    current: tuple[int, ...] | None


@attrs.frozen
class Sample:
    """Counters and controls of the PMU of one core at a time, by name: pmc0, fixed0, global_ctrl, …

    Attributes:
        t: when, in 1/16 cycle; cpu: which core.
        hardware: what silicon holds.
        guest: what the first vCPU sees, on the first core of a machine with KVM; else None.
    """

    t: int
    cpu: int
    hardware: dict[str, int]
    guest: dict[str, int] | None


@attrs.frozen
class Recording:
    """A trace that is over.

    Attributes:
        events: array with the fields t kind cpu rip a b c, in the order of the ring.
        khz: rate of a core; cpus: how many there are.
        place: gives `file:line` of an address of the program, or "".
        names: the CPU's list of PMU events.
        gaps: (index of the event before which events are missing, how many).
        who: in order of `at`, the first for event 0.
        has_host: whether there is a kernel below the program.
        samples: counters on the way, for formats that draw them.
    """

    events: Any
    khz: int
    cpus: int
    place: Callable[[int], str]
    names: str
    gaps: tuple[tuple[int, int], ...]
    who: tuple[Who, ...]
    has_host: bool
    samples: tuple[Sample, ...] = ()

    @classmethod
    def of(cls, run: Any) -> Recording:
        """Of a System or a Result what the ring still has, or all if the System was recorded."""
        if getattr(run, "recorder", None) is not None:
            recorded: Recording = run.recorder.recording()
            return recorded
        events, lost = run.events(), run.lost()["trace"]
        S, programs = _state_of(run)
        gaps = ((0, lost),) if lost and len(events) else ()
        tasks = _tasks(S, programs, run.program, ())
        who = Who(0, tasks, _current(events, S, bool(programs)))
        cpus = max(1, int(S.cores[0].cores))
        program, model, has_host = run.program, run.model, bool(programs)
        return cls(events, model.core_khz, cpus, program.place, model.events, gaps, (who,), has_host)

    @property
    def lost(self) -> int:
        """How many events are missing in all."""
        return sum(count for _, count in self.gaps)

    def moments(self) -> Iterator[Moment]:
        """Every event in the order of time; of those of one time the first CPU's come first."""
        order = self._order()
        lost, who = dict(self.gaps), iter((*self.who[1:], None))
        tasks, current = self.who[0].tasks, list(self.who[0].current or ())
        follows = next(who)
        for begin in range(0, len(self.events), BATCH):
            numbers = order[begin : begin + BATCH]
            rows = self.events[numbers]
            times = nanoseconds(rows["t"], self.khz).tolist()
            for number, ns, row in zip(numbers.tolist(), times, rows.tolist(), strict=True):
                while follows is not None and number >= follows.at:
                    tasks = follows.tasks
                    current = list(follows.current) if follows.current is not None else current
                    follows = next(who)
                t, kind, cpu, rip, a, b, c = row
                task = _task(tasks, current[cpu])
                comes, error = IDLE, None
                if kind == TR_VM_ENTRY and a & _HAS_ERROR == _HAS_ERROR:
                    error = self._error_code(number, cpu)
                if kind == TR_SCHED_SWITCH:
                    current[cpu] = b - 1
                    comes = _task(tasks, current[cpu])
                yield Moment(ns, t, cpu, kind, rip, a, b, c, task, lost.pop(number, 0), comes, error)

    def _error_code(self, number: int, cpu: int) -> int | None:
        """Of what the entry with this number injects: its delivery is the CPU's next event."""
        for event in self.events[number + 1 : number + 1 + LOOKED]:
            if int(event["cpu"]) == cpu:
                return int(event["b"]) if int(event["kind"]) == TR_EXCEPTION else None
        return None

    def _order(self) -> Any:
        if self.cpus == 1:
            return np.arange(len(self.events))
        # A stable sort: of one CPU the ring has them in order already.
        return np.lexsort((self.events["cpu"], nanoseconds(self.events["t"], self.khz)))


def nanoseconds(t: Any, khz: int) -> Any:
    """Times of 1/16 cycle as nanoseconds, of any length; an array of int64."""
    ticks = 16 * khz  # of a millisecond
    return t // ticks * 1_000_000 + t % ticks * 1_000_000 // ticks


class Recorder:
    """Keeps every event of a System from now on, in a file without a name.

    Args:
        system: its ring is looked at when `System` says that compiled code has come back.
        samples: look at the counters on the way, too: at first every SAMPLED cycles, and when that was done
            MOST times, half as often from there on.
    """

    def __init__(self, system: Any, samples: bool = False) -> None:
        self._system = system
        self._file = tempfile.TemporaryFile(prefix="vpmu-trace-")  # noqa: SIM115  (as long as the run)
        weakref.finalize(self, self._file.close)
        self._head = int(system.E.ring_head)
        self._count = 0
        self._gaps: list[tuple[int, int]] = []
        self._who: list[Who] = []
        self._none = system.E.ring[:0]
        self._programs = [program.name for program in system.host_programs()]
        self._key: bytes | None = None
        self._period = 16 * SAMPLED if samples else 0
        self._samples: list[Sample] = []
        self._sampled = -self._period  # when
        system.recorder = self
        self.drain()

    @property
    def lost(self) -> int:
        """Events that the ring had no room for until they were fetched."""
        return sum(count for _, count in self._gaps)

    @property
    def ticks(self) -> int:
        """For how long, in 1/16 cycle, the run may go on by itself."""
        room = RING_TICKS * len(self._system.E.ring) // len(self._system.cores)
        return min(room, self._period) if self._period else room

    def drain(self) -> None:
        """Fetch what is new. Raises LoadError where the disk has no room."""
        if self._period and self._system.furthest - self._sampled >= self._period:
            self._look_at_counters()
        head = int(self._system.E.ring_head)
        events = self._system.events_since(self._head) if head != self._head else self._none
        lost = head - self._head - len(events)
        self._look(events, lost)
        if lost:
            self._gaps.append((self._count, lost))
        if not len(events):
            return
        try:
            self._file.write(events.tobytes())
        except OSError as error:
            where = tempfile.gettempdir()
            raise LoadError(f"the trace has no room in {where}: {error.strerror}; see TMPDIR") from None
        self._head = head
        self._count += len(events)

    def _look_at_counters(self) -> None:
        system = self._system
        for cpu, core in enumerate(system.cores):
            guest = _named(system.guest_pmu()) if system.has_host and cpu == 0 else None
            self._samples.append(Sample(int(core.t), cpu, _named(system.hardware_pmu(cpu)), guest))
        self._sampled = system.furthest
        if len(self._samples) % (MOST * len(system.cores)) == 0:
            self._period *= 2

    def _look(self, events: Any, lost: int) -> None:
        """Whether other tasks are there, or with other vCPUs, than for the events before these."""
        S, programs = self._system.S, self._programs
        fields = ("pid", "program", "vcpu") if programs else ()
        key = b"".join(S.tasks[field].tobytes() for field in fields)
        if key == self._key and not lost:
            return
        self._key = key
        before = self._who[-1].tasks if self._who else ()
        tasks = _tasks(S, programs, self._system.program, before)
        current = _current(events, S, bool(programs)) if lost or not self._who else None
        if current is not None or tasks != before:
            self._who.append(Who(self._count, tasks, current))

    def recording(self) -> Recording:
        """All of it, once the run is over."""
        if self._period and self._system.furthest != self._sampled:
            self._look_at_counters()
        self.drain()
        self._file.flush()
        system = self._system
        dtype = system.E.ring.dtype
        size = self._count * dtype.itemsize
        events = np.memmap(self._file, dtype, "r", shape=(self._count,)) if size else np.zeros(0, dtype)
        return Recording(
            np.asarray(events), system.model.core_khz, len(system.cores), system.program.place,
            system.model.events, tuple(self._gaps), tuple(self._who), system.has_host, tuple(self._samples),
        )  # fmt: skip


def _task(tasks: tuple[Task, ...], row: int) -> Task:
    return tasks[row] if 0 <= row < len(tasks) else IDLE


def _named(pmu: dict[str, Any]) -> dict[str, int]:
    found = {f"pmc{k}": value for k, value in enumerate(pmu["pmc"])}
    found |= {f"fixed{k}": value for k, value in enumerate(pmu["fixed"])}
    return found | {key: pmu[key] for key in ("global_ctrl", "global_status")}


def _state_of(run: Any) -> tuple[Any, list[str]]:
    """SYSTEM of a System or a Result, and the names of its host programs; none without a hypervisor."""
    if hasattr(run, "S"):
        return run.S, [program.name for program in run.host_programs()]
    from vpmu_emu.linux.state import SYSTEM

    S = np.frombuffer(run.record, dtype=SYSTEM).view(np.recarray)[0]
    reported = {int(task["pid"]): str(task["program"]) for task in run.values.get("tasks", ())}
    names: list[str] = []
    for task in S.tasks:
        number = int(task.program)
        if int(task.pid) in reported:
            names += [""] * (number + 1 - len(names))
            names[number] = reported[int(task.pid)]
    return S, names


def _tasks(S: Any, programs: list[str], program: Any, before: tuple[Task, ...]) -> tuple[Task, ...]:
    if not programs:  # alone on the machine
        return (Task(1, Path(program.name).stem[:COMM]),)
    made = [int(vcpu.vm) for vcpu in S.vcpus if int(vcpu.used)]
    found = []
    for k, task in enumerate(S.tasks):
        if not int(task.used) and int(task.pid) == 0:
            break
        number = int(task.program)
        comm = Path(programs[number]).stem[:COMM] if number < len(programs) else ""
        runs = int(task.vcpu)
        if runs >= 0:
            vcpu = (int(S.vcpus[runs].vm), int(S.vcpus[runs].vcpu_id))
        else:
            vcpu = before[k].vcpu if k < len(before) else (made[0] if made else 0, 0)
        found.append(Task(int(task.pid), comm, vcpu))
    return tuple(found)


def _current(events: Any, S: Any, has_host: bool) -> tuple[int, ...]:
    """Row of the task on each CPU before `events`: whom a first switch takes away, else who is there."""
    cpus = int(S.cores[0].cores)
    if not has_host:
        return (0,) * max(1, cpus)
    found = [int(S.percpu[cpu].curr) for cpu in range(max(1, cpus))]
    for event in events[events["kind"] == TR_SCHED_SWITCH][::-1]:
        found[int(event["cpu"])] = int(event["a"]) - 1
    return tuple(found)
