"""The host's tasks in words: what ran, where, how long, and what became of it. Only looks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from signal import Signals
from typing import Any

from vpmu_emu.linux.state import TASK_DEAD, TASK_INTERRUPTIBLE, TASK_RUNNING


def _since_switch(S: Any, task: Any) -> int:
    # what update_curr() has not booked yet
    cpu = int(task.on_cpu)
    return int(S.cores[cpu].t) - int(task.exec_start) if cpu >= 0 else 0


def killed(task: Any, program: Any) -> dict[str, Any] | None:
    """The signal that killed a task, and where its program was; None if none did."""
    code = int(task.exit_code) if int(task.state) == TASK_DEAD else 0
    if code >= 0:
        return None
    rip = int(task.rip)
    return {"signal": Signals(-code).name, "rip": rip, "line": program.place(rip) or None}


def tasks_report(S: Any, programs: Sequence[Any]) -> list[dict[str, Any]]:
    """Every task of the host that there was room to remember; times in cycles."""
    states = {TASK_RUNNING: "running", TASK_INTERRUPTIBLE: "sleeping", TASK_DEAD: "dead"}
    return [
        {
            "pid": int(task.pid),
            "program": Path(programs[int(task.program)].name).name,
            "state": states[int(task.state)],
            "exit_code": int(task.exit_code) if int(task.state) == TASK_DEAD else None,
            "killed": killed(task, programs[int(task.program)]),
            "cpu": int(task.cpu),
            "cycles": (int(task.sum_exec) + _since_switch(S, task)) >> 4,
            "switches": int(task.switches),
            "migrations": int(task.migrations),
        }
        for task in S.tasks
        if int(task.used)
    ]
