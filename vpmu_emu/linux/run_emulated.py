"""The host's loop for VMs of modes `emulated` and `none`: an entry that compiles only their handlers."""

from __future__ import annotations

from vpmu_emu._jit import borrowed, jit
from vpmu_emu.linux.host import HOST_GUEST, before_return, guest_turn_ended, host_turn
from vpmu_emu.linux.kvm.vcpu_emulated import host_msr, vcpu_run_emulated
from vpmu_emu.linux.state import MSR_OP_NONE
from vpmu_emu.machine.state import CODE_NEXT, RUN_SYSCALL


@jit(entry=True)
def run_host_emulated(S, M, E):
    """Run all cores of the host until a RUN_* code: a stop, a system call, Python's turn."""
    M = borrowed(M)
    if S.msr_op != MSR_OP_NONE:  # KVM_GET_MSRS and KVM_SET_MSRS come this way: no entry of their own
        host_msr(S, E)
        return RUN_SYSCALL
    code = CODE_NEXT
    while code == CODE_NEXT:
        code = host_turn(S, M, E)
        if code == HOST_GUEST:
            code = vcpu_run_emulated(S, M, E)
            code = guest_turn_ended(S, M, E, code)
    return before_return(S, code)
