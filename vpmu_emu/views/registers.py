"""A guest's registers wherever they are: on a core, in the VMCS, or in its vCPU's record. Only looks."""

from __future__ import annotations

from typing import Any

import numpy as np

from vpmu_emu.machine import msr_index
from vpmu_emu.tables.vmcs import vmcs_field

FIRST = 0  # the vCPU that a run is about


def core_of(S: Any, k: int = FIRST) -> int:
    """The core that vCPU k is loaded on, -1 if it is on none."""
    for cpu in range(int(S.config.n_cores)):
        if int(S.percpu[cpu].vcpu) == k:
            return cpu
    return -1


def _vmread(S: Any, M: np.ndarray[Any, Any], k: int, name: str) -> int:
    at = int(S.vcpus[k].vmcs) + vmcs_field(name).offset
    return int.from_bytes(M[at : at + 8].tobytes(), "little")


def registers(S: Any, M: np.ndarray[Any, Any], k: int = FIRST) -> list[int]:
    """rax … r15 of vCPU k by number, then rip and rflags."""
    cpu = core_of(S, k)
    held = S.cores[cpu].regs if cpu >= 0 else S.vcpus[k].regs
    found = [int(v) for v in held[:16]]
    if cpu >= 0 and int(S.cores[cpu].vmx.nonroot):
        return [*found, int(S.cores[cpu].rip), int(S.cores[cpu].rflags)]
    found[4] = _vmread(S, M, k, "GUEST_RSP")
    return [*found, _vmread(S, M, k, "GUEST_RIP"), _vmread(S, M, k, "GUEST_RFLAGS")]


def interruptibility(S: Any, M: np.ndarray[Any, Any], k: int = FIRST) -> int:
    """What blocked interrupts of vCPU k at its last exit: GUEST_INTR_STATE_* (SDM 3C 25.4.2)."""
    return _vmread(S, M, k, "GUEST_INTERRUPTIBILITY_INFO") & 0xFFFF_FFFF


def lapic_off(lapic: Any) -> str:
    """The bit that has a local APIC off, "" if it is on (SDM 3A 12.4.3)."""
    if not int(lapic.apic_base) & int(msr_index.MSR_IA32_APICBASE_ENABLE):
        return "APIC_BASE[11] is 0"
    return "" if int(lapic.spiv) & int(msr_index.APIC_SPIV_APIC_ENABLED) else "SPIV[8] is 0"


def lapic_mode(lapic: Any) -> str:
    """How its registers are reached."""
    return "x2APIC" if int(lapic.apic_base) & int(msr_index.X2APIC_ENABLE) else "xAPIC"
