"""The run loop of mode `passthrough`: the PMU context is switched around the inner loop.

Re-entries within the inner loop do not switch. An NMI exit is handled with the guest's context still
in, an external interrupt after it is out.
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
from vpmu_emu.linux.kvm.msrfilter import kvm_msr_allowed, msr_denied_to_vmm
from vpmu_emu.linux.kvm.pmu import (
    PMU_FIXED_CTR,
    PMU_PERFCTR,
    PMU_PMC,
    is_vmware_backdoor_pmc,
    kvm_pmu_deliver_pmi,
    kvm_pmu_is_valid_msr,
    kvm_pmu_rdpmc_idx,
    kvm_pmu_rdpmc_vmware,
    kvm_pmu_trigger_event,
)
from vpmu_emu.linux.kvm.pmu_passthrough import (
    kvm_passthrough_pmu_handle_event,
    kvm_pmu_get_msr,
    kvm_pmu_restore_pmu_context,
    kvm_pmu_save_pmu_context,
    kvm_pmu_set_msr,
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
from vpmu_emu.linux.state import (
    KVM_REQ_PMI,
    KVM_REQ_PMU,
    MSR_OP_NONE,
    MSR_OP_SET,
    W_GLOBAL_CTRL_SWITCH,
)
from vpmu_emu.machine.engine import run_core
from vpmu_emu.machine.mutants import I_BOTH_WRMSRS, I_PMI_BEFORE_PMU
from vpmu_emu.machine.physical import ld64, st64
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
from vpmu_emu.machine.u64 import LOW32, U8, U32, U64, ZERO
from vpmu_emu.machine.vmx import (
    EXIT_MSR_READ,
    EXIT_MSR_WRITE,
    EXIT_RDPMC,
    V_GUEST_GLOBAL_CTRL,
    vmread,
    vmwrite,
)

COST_ENTER_GUEST = cost("vcpu_enter_guest")
COST_HANDLE_EXIT = cost("vmx_handle_exit")
COST_WRMSR_EXIT = cost("kvm_emulate_wrmsr")
COST_RDMSR_EXIT = cost("kvm_emulate_rdmsr")
COST_RDPMC_EXIT = cost("kvm_emulate_rdpmc")
COST_VMREAD = cost("vmread")
COST_VMWRITE = cost("vmwrite")

ENTRY_LOAD_LIST = 0x800


@jit()
def pmu_entry_global_ctrl(S, M, E):
    """GLOBAL_CTRL for VM entry (patch 28), by the VMCS field or the MSR-load list."""
    core = S.cores[S.this_cpu]
    pmu = S.vcpus[S.this_vcpu].pmu
    if S.config.without & W_GLOBAL_CTRL_SWITCH != ZERO or pmu.version == 0:
        return
    if S.config.load_global_ctrl != 0:
        charge(S, E, COST_VMWRITE)
        vmwrite(core, M, V_GUEST_GLOBAL_CTRL, pmu.global_ctrl)
    else:
        st64(M, U64(S.vcpus[S.this_vcpu].msr_lists + ENTRY_LOAD_LIST) + U8, pmu.global_ctrl)


@jit()
def pmu_exit_global_ctrl(S, M, E):
    """What VM exit saved of the guest's GLOBAL_CTRL (patch 28)."""
    core = S.cores[S.this_cpu]
    pmu = S.vcpus[S.this_vcpu].pmu
    if S.config.without & W_GLOBAL_CTRL_SWITCH != ZERO or pmu.version == 0:
        return
    if S.config.save_global_ctrl != 0:
        pmu.global_ctrl = vmread(core, M, V_GUEST_GLOBAL_CTRL)
        charge(S, E, COST_VMREAD)
    else:
        pmu.global_ctrl = ld64(M, U64(S.vcpus[S.this_vcpu].msr_lists) + U8)


@jit()
def handle_pmu_exit(S, M, E):
    """MSR_READ, MSR_WRITE and RDPMC; of the PMU only selectors and what the guest does not have."""
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
            finish_rdpmc(S, M, E, index, pmu.pmcs[i].counter)
        return
    writes = 1 if core.vmx.exit_reason == EXIT_MSR_WRITE else 0
    if not kvm_msr_allowed(S, M, index, writes):
        value = (core.regs[RAX] & LOW32) | (core.regs[RDX] << U32)
        if not msr_denied_to_vmm(S, M, index, value, writes):
            kvm_inject_gp(S)
        return
    which = kvm_pmu_is_valid_msr(pmu, index)
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
        old = kvm_pmu_get_msr(S, E, which)
        fault = kvm_pmu_set_msr(S, E, which, value, 0)
    else:
        _, old = kvm_get_msr_common(S, M, E, index, 1)
        fault = kvm_set_msr_common(S, M, E, index, value)
    finish_wrmsr(S, M, E, index, value, old, fault)


@jit()
def vcpu_requests(S, E):
    """The vPMU's requests, KVM_REQ_PMU first: it may ask for KVM_REQ_PMI."""
    vcpu = S.vcpus[S.this_vcpu]
    early = S.cores[S.this_cpu].inject & I_PMI_BEFORE_PMU != ZERO
    if early and vcpu.requests & KVM_REQ_PMI != ZERO:
        vcpu.requests &= ~KVM_REQ_PMI
        kvm_pmu_deliver_pmi(S, E)
    if vcpu.requests & KVM_REQ_PMU != ZERO:
        vcpu.requests &= ~KVM_REQ_PMU
        kvm_passthrough_pmu_handle_event(S, E)
    if vcpu.requests & KVM_REQ_PMI != ZERO and not early:
        vcpu.requests &= ~KVM_REQ_PMI
        kvm_pmu_deliver_pmi(S, E)


@jit()
def host_msr(S, E):
    """A register of the guest's PMU for the VMM: S.msr_op, msr_index and msr_value ask and are answered."""
    which = kvm_pmu_is_valid_msr(S.vcpus[S.this_vcpu].pmu, S.msr_index)
    S.msr_fault = 1
    kind = which & ~15
    pmu = S.vcpus[S.this_vcpu].pmu
    pmc = pmu.pmcs[which & 15 if which >= 0 else 0]
    counter = kind == PMU_PERFCTR or kind == PMU_PMC or kind == PMU_FIXED_CTR
    if which >= 0 and S.msr_op == MSR_OP_SET:
        S.msr_fault = kvm_pmu_set_msr(S, E, which, S.msr_value, 1)
        if counter:
            pmc.emulated_counter = ZERO
    elif which >= 0:
        S.msr_fault = 0
        S.msr_value = kvm_pmu_get_msr(S, E, which)
        if counter:  # what waits for KVM_REQ_PMU belongs to it
            S.msr_value = (S.msr_value + pmc.emulated_counter) & pmu.counter_bitmask
    S.msr_op = MSR_OP_NONE


@jit()
def vcpu_run_passthrough(S, M, E):
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
            vcpu_requests(S, E)
            kvm_check_and_inject_events(S, M, E)
            if vcpu.pmu.version != 0:
                kvm_pmu_restore_pmu_context(S, E)
            pmu_entry_global_ctrl(S, M, E)
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
            pmu_exit_global_ctrl(S, M, E)
            if vmx_exit_handlers_fastpath(S, M, E) == 0:
                break
            pmu_entry_global_ctrl(S, M, E)
            vmx_vcpu_enter(S, M, E)
        if vcpu.pmu.version != 0:
            kvm_pmu_save_pmu_context(S, E)
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
