"""A trace as text: line for line what `trace-cmd report` prints, or what the kernel's file `trace` has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vpmu_emu.traces.points import HARDIRQ, IRQS_OFF, NMI, Line

_HEAD = """\
# tracer: nop
#
#                                _-----=> irqs-off/BH-disabled
#                               / _----=> need-resched
#                              | / _---=> hardirq/softirq
#                              || / _--=> preempt-depth
#                              ||| / _-=> migrate-disable
#                              |||| /     delay
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
#              | |         |   |||||     |         |
"""


def report_text(lines: Iterable[Line], cpus: int) -> Iterator[str]:
    """As `trace-cmd report` of the same trace.dat; each line with its end."""
    yield f"cpus={cpus}\n"
    for line in lines:
        moment = line.moment
        yield _lost(line) + (
            f"{moment.task.comm:>16}-{moment.task.pid:<5} [{moment.cpu:03}] {_seconds(moment.ns):>12}: "
            f"{line.point.name + ':':<21} {line.point.show(line.values)}\n"
        )


def file_text(lines: Iterable[Line]) -> Iterator[str]:
    """As /sys/kernel/tracing/trace: with what was off and nested when it happened."""
    yield _HEAD
    for line in lines:
        moment = line.moment
        yield _lost(line) + (
            f"{moment.task.comm:>16}-{moment.task.pid:<7} [{moment.cpu:03}] {_flags(line)} "
            f"{_seconds(moment.ns):>12}: {line.point.name}: {line.point.show(line.values)}\n"
        )


def _lost(line: Line) -> str:
    moment = line.moment
    return f"CPU:{moment.cpu} [LOST {moment.lost} EVENTS]\n" if moment.lost else ""


def _seconds(ns: int) -> str:
    micro = (ns + 500) // 1000
    return f"{micro // 10**6}.{micro % 10**6:06}"


def _flags(line: Line) -> str:
    off = "d" if line.flags & IRQS_OFF else "."
    context = {HARDIRQ | NMI: "Z", NMI: "z", HARDIRQ: "h"}.get(line.flags & (HARDIRQ | NMI), ".")
    return f"{off}.{context}{line.preempt or '.'}."
