"""What VM entry and exit do to the PMU while perf owns it: the host's counters off, the guest's on.

arch/x86/kvm/vmx/vmx.c: atomic_switch_perf_msrs().
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.linux.charge import charge
from vpmu_emu.linux.kvm.vmx.msr_lists import add_atomic_switch_msr
from vpmu_emu.linux.kvm.vmx.pebs import switch_pebs_msrs
from vpmu_emu.linux.native import cost
from vpmu_emu.linux.percpu import this_core, this_cpu
from vpmu_emu.machine import msr_index, vmcs
from vpmu_emu.machine.u64 import U64
from vpmu_emu.machine.vmcs import vmread, vmwrite

COST_SWITCH_MSRS = cost("atomic_switch_perf_msrs")


@jit()
def atomic_switch_perf_msrs(S, M, E, vcpu):
    """Let VM entry and exit switch what perf_guest_get_msrs() says: GLOBAL_CTRL, for PEBS also others."""
    core = this_core(S)
    host = this_cpu(S)
    charge(S, E, COST_SWITCH_MSRS)
    n, guest_value = switch_pebs_msrs(S, M, E, vcpu, 0)
    host_value = host.intel_ctrl & ~host.intel_ctrl_guest_mask
    if S.config.load_global_ctrl != 0:
        exit_ctl = vmread(core, M, vmcs.V_EXIT_CTL) & ~vmcs.EXIT_LOAD_GLOBAL_CTRL
        entry_ctl = vmread(core, M, vmcs.V_ENTRY_CTL) & ~vmcs.ENTRY_LOAD_GLOBAL_CTRL
        if host_value != guest_value:
            exit_ctl |= vmcs.EXIT_LOAD_GLOBAL_CTRL
            entry_ctl |= vmcs.ENTRY_LOAD_GLOBAL_CTRL
            vmwrite(core, M, vmcs.V_GUEST_GLOBAL_CTRL, guest_value)
            vmwrite(core, M, vmcs.V_HOST_GLOBAL_CTRL, host_value)
        vmwrite(core, M, vmcs.V_EXIT_CTL, exit_ctl)
        vmwrite(core, M, vmcs.V_ENTRY_CTL, entry_ctl)
    else:
        n = add_atomic_switch_msr(M, vcpu, n, msr_index.MSR_CORE_PERF_GLOBAL_CTRL, host_value, guest_value)
    vmwrite(core, M, vmcs.V_EXIT_LOAD_COUNT, U64(n))
    vmwrite(core, M, vmcs.V_ENTRY_LOAD_COUNT, U64(n))
