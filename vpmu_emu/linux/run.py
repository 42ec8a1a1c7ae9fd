"""The host's loop, for every mode: the entry that Python calls."""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.linux.host import HOST_GUEST, before_return, guest_turn_ended, host_turn
from vpmu_emu.linux.kvm import pmu_ops
from vpmu_emu.linux.kvm.x86 import vcpu_run
from vpmu_emu.linux.percpu import kvm_get_running_vcpu, this_cpu
from vpmu_emu.machine.state import CODE_NEXT, RUN_RESCHED, RUN_USER


@jit(entry=True)
def run_host(S, M, E):
    """Run all cores of the host until a RUN_* code: a stop, a system call, Python's turn."""
    code = CODE_NEXT
    while code == CODE_NEXT:
        code = host_turn(S, M, E)
        if code == HOST_GUEST:
            vcpu = kvm_get_running_vcpu(S)
            code = vcpu_run(S, M, E, vcpu)
            leaves = code == RUN_RESCHED or code == RUN_USER
            if leaves and this_cpu(S).lockup == 0:
                # Another task, another core's call or the VMM follows (kvm_arch_vcpu_put).
                pmu_ops.out(S, E, vcpu)
            code = guest_turn_ended(S, M, code)
    return before_return(S, code)
