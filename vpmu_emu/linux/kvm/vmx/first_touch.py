"""With `--switch lazy` all of the PMU exits until the guest touches it; here is what passes from then on.

The intercepts of both times are made together, in `intercepts.py`; the second ones wait behind the MSR
lists:

    +0x00  controls: primary processor-based, VM-exit, VM-entry
    +0x18  how many bits of the MSR bitmap are cleared, then their numbers, 4 bytes each
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.linux.kvm.vmx.registers import vmx_set_global_ctrl
from vpmu_emu.machine import vmcs
from vpmu_emu.machine.physical import ld8, ld32, ld64, st8, st64
from vpmu_emu.machine.u64 import BYTE, ONE, U3, U7, U64, ZERO

FIRST_TOUCH = 0xC00  # in the page of MSR lists
MOST = (0x1000 - FIRST_TOUCH - 0x20) // 4
CONTROLS = ("CPU_BASED_VM_EXEC_CONTROL", "VM_EXIT_CONTROLS", "VM_ENTRY_CONTROLS")
_FIELDS = np.array([vmcs.V_PROC, vmcs.V_EXIT_CTL, vmcs.V_ENTRY_CTL], dtype=np.int64)


def note_first_touch(
    M: np.ndarray[Any, Any], vcpu: Any, fields: Mapping[str, int], places: Sequence[int]
) -> None:
    """Write down the controls, and the bits of the MSR bitmap that are cleared then."""
    if len(places) > MOST:
        raise ValueError(f"{len(places)} bits of the MSR bitmap; there is room for {MOST}")
    at = int(vcpu.msr_lists) + FIRST_TOUCH
    words = np.array([*(fields[name] for name in CONTROLS), len(places)], dtype="<u8")
    M[at : at + words.nbytes] = words.view(np.uint8)
    bits = np.array(places, dtype="<u4").view(np.uint8)
    M[at + words.nbytes : at + words.nbytes + len(bits)] = bits


@jit()
def put_in_force(S, M, vcpu):
    """From the next entry on (vmx_recalc_pmu_msr_intercepts). Modifies VMCS and MSR bitmap."""
    at = U64(vcpu.msr_lists + FIRST_TOUCH)
    for k in range(3):
        st64(M, U64(vcpu.vmcs + _FIELDS[k]), ld64(M, at + U64(8 * k)))
    st64(M, U64(vcpu.vmcs + vmcs.V_HOST_GLOBAL_CTRL), ZERO)
    stores = ONE if S.config.save_global_ctrl == 0 else ZERO
    st64(M, U64(vcpu.vmcs + vmcs.V_STORE_COUNT), stores)
    vmx_set_global_ctrl(M, vcpu, vcpu.pmu.global_ctrl)
    for k in range(min(np.int64(ld64(M, at + U64(0x18))), MOST)):
        place = U64(ld32(M, at + U64(0x20) + U64(4 * k)))
        byte = U64(vcpu.msr_bitmap) + (place >> U3)
        st8(M, byte, U64(ld8(M, byte)) & ~(ONE << (place & U7)) & BYTE)
