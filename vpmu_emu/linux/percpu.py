"""Where the host's code runs: its core, that core's variables, and the vCPU loaded there.

include/linux/percpu-defs.h, virt/kvm/kvm_main.c.
"""

from __future__ import annotations

from vpmu_emu._jit import jit


@jit()
def this_core(S):
    """The processor (machine.state.CORE) that runs this code."""
    return S.cores[S.this_cpu]


@jit()
def this_cpu(S):
    """Its per-CPU variables (linux.state.PERCPU), as this_cpu_ptr() gives them."""
    return S.percpu[S.this_cpu]


@jit()
def kvm_get_running_vcpu(S):
    """The vCPU (linux.state.VCPU) that is loaded: where no caller has one to pass on."""
    return S.vcpus[S.this_vcpu]
