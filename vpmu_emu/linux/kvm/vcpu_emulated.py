"""The run loop of mode `emulated`, and of `none`, which is the same without a vPMU.

GLOBAL_CTRL in hardware is switched at each entry and exit by what perf says: host events that exclude
the guest, guest events that exclude the host (atomic_switch_perf_msrs).
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.linux.kvm.emulate import handle_emulated_exit
from vpmu_emu.linux.kvm.exits import (
    finish_rdmsr,
    finish_rdpmc,
    finish_wrmsr,
    kvm_get_msr_common,
    kvm_inject_gp,
    kvm_set_msr_common,
    vmx_handle_exit,
)
from vpmu_emu.linux.kvm.lbr import (
    intel_pmu_debugctl_written,
    intel_pmu_deliver_pmi,
    intel_pmu_handle_lbr_msrs_access,
    intel_pmu_is_valid_lbr_msr,
    intel_pmu_lbr_msr_now,
    vmx_passthrough_lbr_msrs,
)
from vpmu_emu.linux.kvm.msrfilter import kvm_msr_allowed, msr_denied_to_vmm
from vpmu_emu.linux.kvm.pebs import add_atomic_switch_msr, switch_pebs_msrs
from vpmu_emu.linux.kvm.pmu import (
    is_vmware_backdoor_pmc,
    kvm_pmu_deliver_pmi,
    kvm_pmu_is_valid_msr,
    kvm_pmu_rdpmc_idx,
    kvm_pmu_rdpmc_vmware,
    kvm_pmu_trigger_event,
)
from vpmu_emu.linux.kvm.pmu_emulated import (
    PMU_FIXED_CTR,
    PMU_PERFCTR,
    PMU_PMC,
    kvm_pmu_get_msr,
    kvm_pmu_handle_event,
    kvm_pmu_set_msr,
    pmc_counter_now,
    pmc_read_counter,
)
from vpmu_emu.linux.kvm.vcpu import (
    EXIT_FASTPATH_NONE,
    handle_exit_irqoff,
    kvm_check_and_inject_events,
    kvm_vcpu_block,
    send_ipi,
    vmx_exit_handlers_fastpath,
    vmx_vcpu_enter,
    vmx_vcpu_exit,
)
from vpmu_emu.linux.native import cost
from vpmu_emu.linux.perf.pmi import charge
from vpmu_emu.linux.perf.x86 import MSR_CORE_PERF_GLOBAL_CTRL
from vpmu_emu.linux.state import KVM_REQ_PMI, KVM_REQ_PMU, MSR_OP_NONE, MSR_OP_SET
from vpmu_emu.machine.engine import run_core
from vpmu_emu.machine.mutants import I_BOTH_WRMSRS, I_PMI_BEFORE_PMU
from vpmu_emu.machine.state import (
    CODE_EXIT,
    RAX,
    RCX,
    RDX,
    RUN_RESCHED,
    RUN_STOPPED,
    RUN_USER,
    RUN_WATCH,
)
from vpmu_emu.machine.u64 import LOW32, U32, U64, ZERO
from vpmu_emu.machine.vmx import (
    ENTRY_LOAD_GLOBAL_CTRL,
    EXIT_LOAD_GLOBAL_CTRL,
    EXIT_MSR_READ,
    EXIT_MSR_WRITE,
    EXIT_RDPMC,
    V_ENTRY_CTL,
    V_ENTRY_LOAD_COUNT,
    V_EXIT_CTL,
    V_EXIT_LOAD_COUNT,
    V_GUEST_GLOBAL_CTRL,
    V_HOST_GLOBAL_CTRL,
    vmread,
    vmwrite,
)
from vpmu_emu.tables.msrs import by_name

COST_ENTER_GUEST = cost("vcpu_enter_guest")
COST_HANDLE_EXIT = cost("vmx_handle_exit")
COST_WRMSR_EXIT = cost("kvm_emulate_wrmsr")
COST_RDMSR_EXIT = cost("kvm_emulate_rdmsr")
COST_RDPMC_EXIT = cost("kvm_emulate_rdpmc")
COST_SWITCH_MSRS = cost("atomic_switch_perf_msrs")

MSR_IA32_DEBUGCTLMSR = U64(by_name("IA32_DEBUGCTL"))
_KIND = ~15


@jit()
def atomic_switch_perf_msrs(S, M, E):
    """Let VM entry and exit switch what perf_guest_get_msrs() says: GLOBAL_CTRL, for PEBS also others."""
    core = S.cores[S.this_cpu]
    host = S.percpu[S.this_cpu]
    charge(S, E, COST_SWITCH_MSRS)
    n, guest_value = switch_pebs_msrs(S, M, E, 0)
    host_value = host.intel_ctrl & ~host.intel_ctrl_guest_mask
    if S.config.load_global_ctrl != 0:
        exit_ctl = vmread(core, M, V_EXIT_CTL) & ~EXIT_LOAD_GLOBAL_CTRL
        entry_ctl = vmread(core, M, V_ENTRY_CTL) & ~ENTRY_LOAD_GLOBAL_CTRL
        if host_value != guest_value:
            exit_ctl |= EXIT_LOAD_GLOBAL_CTRL
            entry_ctl |= ENTRY_LOAD_GLOBAL_CTRL
            vmwrite(core, M, V_GUEST_GLOBAL_CTRL, guest_value)
            vmwrite(core, M, V_HOST_GLOBAL_CTRL, host_value)
        vmwrite(core, M, V_EXIT_CTL, exit_ctl)
        vmwrite(core, M, V_ENTRY_CTL, entry_ctl)
    else:
        n = add_atomic_switch_msr(S, M, n, MSR_CORE_PERF_GLOBAL_CTRL, host_value, guest_value)
    vmwrite(core, M, V_EXIT_LOAD_COUNT, U64(n))
    vmwrite(core, M, V_ENTRY_LOAD_COUNT, U64(n))


@jit()
def handle_lbr_exit(S, M, E, index):
    """MSR_READ and MSR_WRITE of an LBR register."""
    core = S.cores[S.this_cpu]
    if core.vmx.exit_reason == EXIT_MSR_READ:
        charge(S, E, COST_RDMSR_EXIT)
        finish_rdmsr(S, M, E, index, intel_pmu_handle_lbr_msrs_access(S, E, index, ZERO, 0), 0)
    else:
        charge(S, E, COST_WRMSR_EXIT)
        value = (core.regs[RAX] & LOW32) | (core.regs[RDX] << U32)
        old = intel_pmu_lbr_msr_now(S, index)
        intel_pmu_handle_lbr_msrs_access(S, E, index, value, 1)
        finish_wrmsr(S, M, E, index, value, old, 0)


@jit()
def handle_pmu_exit(S, M, E):
    """MSR_READ, MSR_WRITE and RDPMC; every PMU register is among them."""
    core = S.cores[S.this_cpu]
    pmu = S.vcpus[S.this_vcpu].pmu
    index = core.regs[RCX] & LOW32
    if core.vmx.exit_reason == EXIT_RDPMC:
        charge(S, E, COST_RDPMC_EXIT)
        if is_vmware_backdoor_pmc(S, index):
            finish_rdpmc(S, M, E, index, kvm_pmu_rdpmc_vmware(S, index))
            return
        i = kvm_pmu_rdpmc_idx(S, index)
        if i < 0:
            kvm_inject_gp(S)
        else:
            finish_rdpmc(S, M, E, index, pmc_read_counter(S, E, i))
        return
    writes = 1 if core.vmx.exit_reason == EXIT_MSR_WRITE else 0
    if not kvm_msr_allowed(S, M, index, writes):
        value = (core.regs[RAX] & LOW32) | (core.regs[RDX] << U32)
        if not msr_denied_to_vmm(S, M, index, value, writes):
            kvm_inject_gp(S)
        return
    which = kvm_pmu_is_valid_msr(pmu, index)
    if which < 0 and intel_pmu_is_valid_lbr_msr(S, index):
        handle_lbr_exit(S, M, E, index)
        return
    if core.vmx.exit_reason == EXIT_MSR_READ:
        charge(S, E, COST_RDMSR_EXIT)
        fault = 0
        if which >= 0:
            value = kvm_pmu_get_msr(S, E, which)
        else:
            fault, value = kvm_get_msr_common(S, M, E, index, 0)
        finish_rdmsr(S, M, E, index, value, fault)
        return
    charge(S, E, COST_WRMSR_EXIT)
    if core.inject & I_BOTH_WRMSRS != ZERO:
        kvm_pmu_trigger_event(S, E, pmu.pmc_counting_instructions)
    value = (core.regs[RAX] & LOW32) | (core.regs[RDX] << U32)
    old = ZERO
    if which >= 0:
        kind = which & _KIND
        if kind == PMU_PERFCTR or kind == PMU_PMC or kind == PMU_FIXED_CTR:
            old = pmc_counter_now(S, which & 15)  # for the trace: without asking perf
        else:
            old = kvm_pmu_get_msr(S, E, which)
        fault = kvm_pmu_set_msr(S, E, which, value, 0)
    else:
        _, old = kvm_get_msr_common(S, M, E, index, 1)
        fault = kvm_set_msr_common(S, M, E, index, value)
        if index == MSR_IA32_DEBUGCTLMSR and fault == 0:
            intel_pmu_debugctl_written(S, E, value)
    finish_wrmsr(S, M, E, index, value, old, fault)


@jit()
def vcpu_requests(S, M, E):
    """The vPMU's requests, KVM_REQ_PMU first: it may ask for KVM_REQ_PMI."""
    vcpu = S.vcpus[S.this_vcpu]
    early = S.cores[S.this_cpu].inject & I_PMI_BEFORE_PMU != ZERO
    if early and vcpu.requests & KVM_REQ_PMI != ZERO:
        vcpu.requests &= ~KVM_REQ_PMI
        kvm_pmu_deliver_pmi(S, E)
    if vcpu.requests & KVM_REQ_PMU != ZERO:
        vcpu.requests &= ~KVM_REQ_PMU
        kvm_pmu_handle_event(S, M, E)
    if vcpu.requests & KVM_REQ_PMI != ZERO and not early:
        vcpu.requests &= ~KVM_REQ_PMI
        intel_pmu_deliver_pmi(S, M)
        kvm_pmu_deliver_pmi(S, E)


@jit()
def host_msr(S, E):
    """A register of the guest's PMU for the VMM: S.msr_op, msr_index and msr_value ask and are answered."""
    which = kvm_pmu_is_valid_msr(S.vcpus[S.this_vcpu].pmu, S.msr_index)
    S.msr_fault = 1
    if which >= 0 and S.msr_op == MSR_OP_SET:
        S.msr_fault = kvm_pmu_set_msr(S, E, which, S.msr_value, 1)
    elif which >= 0:
        S.msr_fault = 0
        S.msr_value = kvm_pmu_get_msr(S, E, which)
    elif intel_pmu_is_valid_lbr_msr(S, S.msr_index):
        writes = 1 if S.msr_op == MSR_OP_SET else 0
        S.msr_fault = 0
        S.msr_value = intel_pmu_handle_lbr_msrs_access(S, E, S.msr_index, S.msr_value, writes)
    S.msr_op = MSR_OP_NONE


@jit()
def vcpu_run_emulated(S, M, E):
    """KVM_RUN of the loaded vCPU.

    Until it goes back to the VMM (RUN_USER), the core is wanted for something else (RUN_RESCHED), the
    turn is over (RUN_TURN), it is Python's (RUN_SLICE), or the run is over (RUN_STOPPED).
    """
    core = S.cores[S.this_cpu]
    vcpu = S.vcpus[S.this_vcpu]
    outside = core.vmx.nonroot == 0 and vcpu.completed == 0
    vcpu.completed = 0
    while True:
        if core.vmx.nonroot == 0:
            if core.stop != 0:
                return RUN_STOPPED
            if vcpu.mp_state != 0 or vcpu.apic_events != 0:
                blocked = kvm_vcpu_block(S, M, E)
                if blocked != 0:
                    return blocked
            if S.percpu[S.this_cpu].need_resched != 0:  # xfer_to_guest_mode_handle_work()
                return RUN_RESCHED
            if E.stop_request != 0:  # a watchpoint on an access that KVM has just emulated
                return RUN_WATCH
            charge(S, E, COST_ENTER_GUEST)
            vcpu_requests(S, M, E)
            kvm_check_and_inject_events(S, M, E)
            atomic_switch_perf_msrs(S, M, E)
            vmx_passthrough_lbr_msrs(S, M)
            vmx_vcpu_enter(S, M, E)
            if outside:
                # The host's part of a call is no reason to return before the guest has done anything.
                E.t_slice = max(E.t_slice, core.t + 1)
                outside = False
        while True:
            if core.vmx.nonroot != 0:
                code = run_core(core, M, E)
                if code != CODE_EXIT:
                    return code
            if core.stop != 0:
                return RUN_STOPPED
            vmx_vcpu_exit(S, M, E)
            if vmx_exit_handlers_fastpath(S, M, E) == 0:
                break
            atomic_switch_perf_msrs(S, M, E)
            vmx_passthrough_lbr_msrs(S, M)
            vmx_vcpu_enter(S, M, E)
        handle_exit_irqoff(S, E)
        if vcpu.exit_fastpath == EXIT_FASTPATH_NONE:
            charge(S, E, COST_HANDLE_EXIT)
            handle_emulated_exit(S, M, E)
            reason = core.vmx.exit_reason  # of the exit, or of what the emulator met
            if reason == EXIT_MSR_WRITE or reason == EXIT_MSR_READ or reason == EXIT_RDPMC:
                handle_pmu_exit(S, M, E)
            else:
                vmx_handle_exit(S, M, E)
            send_ipi(S, M, E)
        if vcpu.user_exit >= 0:
            return RUN_USER
