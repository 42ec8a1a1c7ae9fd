"""The MSRs that VM entry and exit load from a list: what has no field in the VMCS, or no control for it.

arch/x86/kvm/vmx/vmx.c.
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.machine.physical import st32, st64
from vpmu_emu.machine.u64 import U8, U64

# the lists of vm.msr_lists: {index, value} of 16 bytes each
EXIT_LOAD_LIST = 0x400
ENTRY_LOAD_LIST = 0x800


@jit()
def add_atomic_switch_msr(M, vcpu, n, index, host_value, guest_value):
    """Entry n of the lists, if the two differ; how many there are now."""
    if host_value == guest_value:
        return n
    at = vcpu.msr_lists + 16 * n
    for k in range(2):
        entry = U64(at + (EXIT_LOAD_LIST if k == 0 else ENTRY_LOAD_LIST))
        st32(M, entry, index)
        st64(M, entry + U8, host_value if k == 0 else guest_value)
    return n + 1
