"""The host's loop, for every mode: the entry that Python calls."""

from __future__ import annotations

from vpmu_emu._jit import borrowed, jit
from vpmu_emu.linux.host import HOST_GUEST, before_return, guest_turn_ended, host_turn
from vpmu_emu.linux.kvm.x86 import vcpu_run
from vpmu_emu.linux.percpu import kvm_get_running_vcpu
from vpmu_emu.machine.state import CODE_NEXT


@jit(entry=True)
def run_host(S, M, E):
    """Run all cores of the host until a RUN_* code: a stop, a system call, Python's turn."""
    M = borrowed(M)
    code = CODE_NEXT
    while code == CODE_NEXT:
        code = host_turn(S, M, E)
        if code == HOST_GUEST:
            code = vcpu_run(S, M, E, kvm_get_running_vcpu(S))
            code = guest_turn_ended(S, M, code)
    return before_return(S, code)
