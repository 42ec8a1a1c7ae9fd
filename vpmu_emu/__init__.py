"""Instruction-level x86 MSR and RDPMC emulator with the KVM vPMU behind it.

    import vpmu_emu as vpmu
    result = vpmu.run("guests/lessons/01_count.s", vpmu="emulated")
    result.counters["pmc0"], result.exits, result.serial
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vpmu_emu.errors import AssemblyError, ConfigError, HostError, LoadError, VpmuError

if TYPE_CHECKING:
    from pathlib import Path

    from vpmu_emu.asm import Program, assemble, assemble_file
    from vpmu_emu.debug.session import Session
    from vpmu_emu.lab.sweep import sweep
    from vpmu_emu.system import Result, Stop, System

    __version__: str

__all__ = [
    "AssemblyError",
    "ConfigError",
    "HostError",
    "LoadError",
    "Program",
    "Result",
    "Session",
    "Stop",
    "System",
    "VpmuError",
    "__version__",
    "assemble",
    "assemble_file",
    "run",
    "sweep",
]

# Where the rest lives: imported when asked for, because the compiler below takes 0.3 s to import.
_LATER = {
    "Program": "vpmu_emu.asm",
    "assemble": "vpmu_emu.asm",
    "assemble_file": "vpmu_emu.asm",
    "Result": "vpmu_emu.system",
    "Stop": "vpmu_emu.system",
    "System": "vpmu_emu.system",
    "Session": "vpmu_emu.debug.session",
    "sweep": "vpmu_emu.lab.sweep",
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


def run(program: Program | str | Path | None, *, vpmu: str = "bare", **options: Any) -> Result:
    """Run a guest to its end and say what it did.

    The first run in a mode compiles it, in two processes, for up to a minute; later ones load it.

    Args:
        program: a program, or the path of a source file or an ELF executable.
        vpmu: bare, none, emulated, passthrough or mediated.
        options: as for `System`, told in docs/options.md: cpu, ram (MiB), max_insns, filter, guest, …

    Raises:
        AssemblyError: the source has errors, all of them listed.
        ConfigError: an option with a wrong value; says what would do.
        LoadError: a file that cannot be read, or a program that does not fit.
        KeyboardInterrupt: Ctrl-C; a `Session` stops there instead and can say how far the guest came.
    """
    from vpmu_emu import build, system

    def ready() -> None:
        if not build.is_built(vpmu):
            build.build([vpmu])

    return system.run(program, vpmu=vpmu, ready=ready, **options)
