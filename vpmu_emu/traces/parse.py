"""Lines of a trace as text, ours or the real tools', as values; what is no such line is a problem's place.

    CPU 0/KVM-4242  [003] d..1. 1234.567890: kvm_exit: vcpu 0 reason MSR_WRITE rip 0xffffffff81067804 …
    CPU 0/KVM  4200/4242  [003]  1234.567890: msr:write_msr: 38f, value 70000000f

The first is `trace-cmd report`'s and the kernel's (with or without flags), the second `perf script`'s.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import attrs

from vpmu_emu.errors import LoadError

LONGEST = 4096  # characters of a line that are looked at
_HEAD = 300  # of them those in which the CPU and the time have to be

# [CPU], flags that some have (or the two together: `report -l`), seconds, period and system that some have,
# name of the event
_MIDDLE = re.compile(
    r"(?:\[(\d{1,6})\]\s+(?:[A-Za-z0-9.#]{3,8}\s+)?|(?<=\s)(\d{1,3})[A-Za-z.][A-Za-z0-9.#]{3,5}\s+)"
    r"(\d{1,12})\.(\d{6}|\d{9}):\s+(?:\d+\s+)?(?:([\w-]{1,40}):)?(\w{1,80}):\s*"
)
_WHO = re.compile(r"\s*(\S.*?)?(?:-|\s)\s*(-?\d{1,10})(?:/(\d{1,10}))?\s*(?:\(\s*[-\d]+\))?\s*$")
_LOST = (
    re.compile(r"CPU:(\d{1,6}) \[LOST (\d{1,18}) EVENTS\]"),
    re.compile(r"CPU:(\d{1,6}) \[(\d{1,18}) EVENTS DROPPED\]"),
    re.compile(r"CPU:(\d{1,6}) \[EVENTS DROPPED\]()"),
    re.compile(r".*PERF_RECORD_LOST(?:_SAMPLES)?:? lost ()(\d{1,18})"),
)
# What tools write besides: comments, heads, CPUs without events.
_BESIDES = re.compile(r"\s*(#|cpus=\d|version = \d|CPU \d+ is empty|$)")

_MSR = re.compile(r"msr_(read|write) ([0-9a-f]{1,8}) = 0x([0-9a-f]{1,16})( \(#GP.*)?")
_HOST = re.compile(r"([0-9a-f]{1,8}), value ([0-9a-f]{1,16})( #GP)?")
_GUEST = re.compile(r"([0-9a-f]{1,8}) = 0x([0-9a-f]{1,16})( \(#GP.*| \(.*|  # .*)?")
_REASON = re.compile(r"(?:vcpu:? \d+,? )?reason ([A-Z0-9_x]+)(?=.* rip 0x([0-9a-f]{1,16})\b)")
_VCPU = re.compile(r"\bvcpu:? (\d{1,5})\b")


@attrs.frozen
class Where:
    """What every line of a trace begins with.

    Attributes:
        number: of the line, from 1 on; ns: nanoseconds.
        comm, pid: whose thread it is; cpu: where it ran.
    """

    number: int
    ns: int
    comm: str
    pid: int
    cpu: int


@attrs.frozen
class Access:
    """An access to a register or a counter.

    Attributes:
        where: of its line.
        what: rdmsr, wrmsr or rdpmc.
        index: of the register, or ECX of RDPMC.
        value: what was read or written.
        by: kvm: a guest's that exited; guest: a guest's that did not, or a program's without KVM; host.
        fault: it was #GP.
    """

    where: Where
    what: str
    index: int
    value: int
    by: str
    fault: bool


@attrs.frozen
class Exit:
    """A vCPU leaves its guest: reason and rip; `vcpu` is None where the line does not say it."""

    where: Where
    reason: str
    rip: int
    vcpu: int | None


@attrs.frozen
class Entry:
    """A vCPU enters its guest."""

    where: Where
    vcpu: int | None


@attrs.frozen
class Lost:
    """Events that are missing: how many and on which CPU, where that is said."""

    number: int
    cpu: int | None
    count: int | None


@attrs.frozen
class Problem:
    """A line that cannot be read: its number and what was expected."""

    number: int
    expected: str
    found: str

    def __str__(self) -> str:
        return f"line {self.number}: expected {self.expected}, found {self.found!r}"


@attrs.frozen
class Other:
    """A line with another event."""

    where: Where
    name: str


Item = Access | Exit | Entry | Lost | Problem | Other


_Reader = tuple[Callable[[Where, str], Item | None], str]


def _access(form: re.Pattern[str], what: str, by: str, expected: str) -> _Reader:
    def read(where: Where, rest: str) -> Item | None:
        found = form.fullmatch(rest)
        if found is None:
            return None
        index, value, fault = found[1], found[2], found[3]
        faulted = bool(fault and fault.lstrip().startswith(("#GP", "(#GP")))
        return Access(where, what, int(index, 16), int(value, 16), by, faulted)

    return read, expected


def _kvm_msr(where: Where, rest: str) -> Item | None:
    found = _MSR.fullmatch(rest)
    if found is None:
        return None
    what = "rdmsr" if found[1] == "read" else "wrmsr"
    return Access(where, what, int(found[2], 16), int(found[3], 16), "kvm", found[4] is not None)


def _vcpu(rest: str) -> int | None:
    found = _VCPU.search(rest)
    return int(found[1]) if found else None


def _kvm_exit(where: Where, rest: str) -> Item | None:
    found = _REASON.match(rest)
    return Exit(where, found[1], int(found[2], 16), _vcpu(rest)) if found else None


def _kvm_entry(where: Where, rest: str) -> Item | None:
    return Entry(where, _vcpu(rest)) if _VCPU.search(rest) or "rip" in rest else None


_VALUES = "`INDEX, value VALUE` in hexadecimal"
_EQUALS = "`INDEX = 0xVALUE` in hexadecimal"
_EVENTS: dict[str, _Reader] = {
    "kvm_msr": (_kvm_msr, "`msr_read INDEX = 0xVALUE` or `msr_write …` in hexadecimal"),
    "kvm_exit": (_kvm_exit, "`vcpu N reason REASON rip 0xADDRESS …`"),
    "kvm_entry": (_kvm_entry, "`vcpu N, rip 0xADDRESS`"),
    "read_msr": _access(_HOST, "rdmsr", "host", _VALUES),
    "write_msr": _access(_HOST, "wrmsr", "host", _VALUES),
    "rdpmc": _access(_HOST, "rdpmc", "host", _VALUES),
    "guest_rdmsr": _access(_GUEST, "rdmsr", "guest", _EQUALS),
    "guest_wrmsr": _access(_GUEST, "wrmsr", "guest", _EQUALS),
    "guest_rdpmc": _access(re.compile(_HOST.pattern + "(?:  # .*)?"), "rdpmc", "guest", _VALUES),
    "kvm_pmu_rdpmc": _access(re.compile(_HOST.pattern + "(?:  # .*)?"), "rdpmc", "kvm", _VALUES),
}


# What a file begins with that is no text, and how it becomes one or is looked at.
_BINARY = {
    b"\x17\x08\x44tracing": "a trace.dat: `trace-cmd report FILE | vpmu trace decode -`",
    b"PERFILE": "of perf: `perf script -i FILE | vpmu trace decode -`",
    b"PAR1": "a Parquet table",
}


@contextmanager
def lines_of(path: str) -> Iterator[Iterator[str]]:
    """The lines of a file, or of standard input if it is called `-`, one by one.

    Raises:
        LoadError: no such file, or one that is no text; says what it is.
    """
    if path == "-":
        yield _decoded(sys.stdin.buffer, "standard input")
        return
    try:
        file = Path(path).open("rb")  # noqa: SIM115  (closed below)
    except (OSError, ValueError) as error:
        raise LoadError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    with file:
        yield _decoded(file, path)


def _decoded(file: BinaryIO, name: str) -> Iterator[str]:
    first = True
    while line := file.readline(LONGEST):
        if first and (b"\0" in line or any(line.startswith(magic) for magic in _BINARY)):
            what = next((said for magic, said in _BINARY.items() if line.startswith(magic)), "binary")
            raise LoadError(f"{name}: is no text of a trace but {what}")
        first = False
        whole = line
        while not whole.endswith(b"\n") and (whole := file.readline(1 << 16)):
            pass  # nothing of a trace is as long; the rest of it is not looked at
        yield line.decode("utf-8", "replace")


def parse(lines: Iterable[str]) -> Iterator[Item]:
    """Every line that says something, in order; empty ones and comments say nothing."""
    for number, line in enumerate(lines, 1):
        item = _item(number, line[:LONGEST].rstrip("\r\n "))
        if item is not None:
            yield item


def _item(number: int, line: str) -> Item | None:
    if _BESIDES.match(line):
        return None
    for form in _LOST:
        found = form.match(line.lstrip())
        if found:
            cpu, count = found[1], found[2]
            return Lost(number, int(cpu) if cpu else None, int(count) if count else None)
    middle = _MIDDLE.search(line[:_HEAD])
    who = _WHO.match(line[: middle.start()]) if middle else None
    if middle is None or who is None:
        return Problem(number, "`TASK-PID [CPU] SECONDS: EVENT: …`", line[:60])
    cpu, cpu_of_flags, seconds, rest, _, name = middle.groups()
    ns = int(seconds) * 10**9 + int(rest.ljust(9, "0"))
    where = Where(number, ns, (who[1] or "").strip(), int(who[3] or who[2]), int(cpu or cpu_of_flags))
    if name not in _EVENTS:
        return Other(where, name)
    read, expected = _EVENTS[name]
    text = line[middle.end() :]
    return read(where, text) or Problem(number, f"{name}: {expected}", text[:60])
