"""Where the host's code runs: its core, that core's variables, and the vCPU loaded there.

include/linux/percpu-defs.h, virt/kvm/kvm_main.c.
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.machine.u64 import U2, U64, ZERO


@jit()
def this_core(S):
    """The processor (machine.state.CORE) that runs this code."""
    return S.cores[S.this_cpu]


@jit()
def this_cpu(S):
    """Its per-CPU variables (linux.state.PERCPU), as this_cpu_ptr() gives them."""
    return S.percpu[S.this_cpu]


@jit()
def vcpu_bit(vcpu):
    """Of `core.pmu.whose`: the counters of vCPU number `vcpu` (int64, -1 none)."""
    return U2 << U64(vcpu) if vcpu >= 0 else ZERO


@jit()
def kvm_get_running_vcpu(S):
    """The vCPU (linux.state.VCPU) that is loaded: where no caller has one to pass on."""
    return S.vcpus[S.this_vcpu]
