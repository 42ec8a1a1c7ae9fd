"""Instruction-level x86 MSR and RDPMC emulator with the KVM vPMU behind it.

    import vpmu_emu as vpmu
    result = vpmu.run("guests/lessons/01_count.s", vpmu="emulated")
    result.counters["pmc0"], result.exits, result.serial

docs/python.md has the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vpmu_emu.errors import AssemblyError, ConfigError, HostError, LoadError, VpmuError

if TYPE_CHECKING:
    from vpmu_emu.api import check, diff, explain, run, trace
    from vpmu_emu.asm import Program, assemble, assemble_file
    from vpmu_emu.checks import CheckReport
    from vpmu_emu.compare.told import DiffReport
    from vpmu_emu.debug.session import Session
    from vpmu_emu.explanation import Explanation
    from vpmu_emu.lab.sweep import sweep
    from vpmu_emu.system import Result, Stop, System
    from vpmu_emu.traces.events import Trace

    __version__: str

__all__ = [
    "AssemblyError",
    "CheckReport",
    "ConfigError",
    "DiffReport",
    "Explanation",
    "HostError",
    "LoadError",
    "Program",
    "Result",
    "Session",
    "Stop",
    "System",
    "Trace",
    "VpmuError",
    "__version__",
    "assemble",
    "assemble_file",
    "check",
    "diff",
    "explain",
    "run",
    "sweep",
    "trace",
]

# Where the rest lives: imported when asked for, because the compiler below takes 0.3 s to import.
_LATER = {
    "CheckReport": "vpmu_emu.checks",
    "Explanation": "vpmu_emu.explanation",
    "Program": "vpmu_emu.asm",
    "assemble": "vpmu_emu.asm",
    "assemble_file": "vpmu_emu.asm",
    "Result": "vpmu_emu.system",
    "Stop": "vpmu_emu.system",
    "System": "vpmu_emu.system",
    "Session": "vpmu_emu.debug.session",
    "Trace": "vpmu_emu.traces.events",
    "check": "vpmu_emu.api",
    "diff": "vpmu_emu.api",
    "DiffReport": "vpmu_emu.compare.told",
    "explain": "vpmu_emu.api",
    "run": "vpmu_emu.api",
    "sweep": "vpmu_emu.lab.sweep",
    "trace": "vpmu_emu.api",
}


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("vpmu-emu")
    except PackageNotFoundError:  # a checkout that was never installed
        return "0+unknown"


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _LATER:
        raise AttributeError(f"module 'vpmu_emu' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_LATER[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

