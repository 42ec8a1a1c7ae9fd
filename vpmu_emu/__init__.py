"""Instruction-level x86 MSR and RDPMC emulator with the KVM vPMU behind it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from vpmu_emu.errors import AssemblyError, ConfigError, HostError, LoadError, VpmuError

try:
    __version__ = version("vpmu-emu")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"

__all__ = [
    "AssemblyError",
    "ConfigError",
    "HostError",
    "LoadError",
    "VpmuError",
    "__version__",
]
