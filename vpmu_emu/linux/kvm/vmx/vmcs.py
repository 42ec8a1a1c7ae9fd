"""A vCPU's VMCS and its MSR lists as the control plane reads and writes them, in memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from vpmu_emu.machine import msr_index
from vpmu_emu.tables.vmcs import control_bit, vmcs_field

PAGE = 4096
MSR_CORE_PERF_GLOBAL_CTRL = int(msr_index.MSR_CORE_PERF_GLOBAL_CTRL)
EXIT_LOAD_LIST, ENTRY_LOAD_LIST = 0x400, 0x800  # in the page of MSR lists
ALL_ONES = (1 << 64) - 1


def vmcs_read(M: np.ndarray[Any, Any], vcpu: Any, name: str) -> int:
    """A field of the vCPU's VMCS."""
    at = int(vcpu.vmcs) + vmcs_field(name).offset
    return int.from_bytes(M[at : at + 8].tobytes(), "little")


def vmcs_write(M: np.ndarray[Any, Any], vcpu: Any, **fields: int) -> None:
    """Set fields of the vCPU's VMCS by name."""
    for name, value in fields.items():
        at = int(vcpu.vmcs) + vmcs_field(name).offset
        M[at : at + 8] = np.frombuffer((int(value) & ALL_ONES).to_bytes(8, "little"), dtype=np.uint8)


def controls(*names: str) -> int:
    """The bit set of some VM-execution, exit or entry controls."""
    return sum(1 << control_bit(name) for name in names)
