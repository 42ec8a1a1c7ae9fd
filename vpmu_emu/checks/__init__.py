"""Guests say in comments what must hold after a run; here it is read, and the run is judged by it."""

from __future__ import annotations

from vpmu_emu.checks.files import CheckReport, check_files, load_plan
from vpmu_emu.checks.judge import (
    MOST_CYCLES,
    MOST_INSNS,
    NORMAL_STOP,
    FileReport,
    Runner,
    Verdict,
    check_program,
    judge,
    run_as_asked,
)
from vpmu_emu.checks.language import (
    CheckError,
    Expectation,
    Outcome,
    ProgramLike,
    Value,
    evaluate,
    evaluate_text,
    exit_names,
    msr_names,
    read_condition,
    show,
)
from vpmu_emu.checks.perturb import perturbed
from vpmu_emu.checks.plan import Plan, find_guests, read_plan

__all__ = [
    "MOST_CYCLES",
    "MOST_INSNS",
    "NORMAL_STOP",
    "CheckError",
    "CheckReport",
    "Expectation",
    "FileReport",
    "Outcome",
    "Plan",
    "ProgramLike",
    "Runner",
    "Value",
    "Verdict",
    "check_files",
    "check_program",
    "evaluate",
    "evaluate_text",
    "exit_names",
    "find_guests",
    "judge",
    "load_plan",
    "msr_names",
    "perturbed",
    "read_condition",
    "read_plan",
    "run_as_asked",
    "show",
]
