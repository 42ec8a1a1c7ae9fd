"""vcpu_run() and vcpu_enter_guest(): one loop for every mode; what differs is asked of `pmu_ops`.

Order within one pass, which is the kernel's: requests (KVM_REQ_PMU before KVM_REQ_PMI), event
injection, interrupts off, PMU context in, inner loop (entry, guest, exit, NMI, fast path), PMU context
out, the external interrupt that caused the exit, interrupts on, exit handler. arch/x86/kvm/x86.c.
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.linux.charge import charge
from vpmu_emu.linux.kvm import pmu_ops
from vpmu_emu.linux.kvm.debugregs import load_debug_registers
from vpmu_emu.linux.kvm.emulate import handle_emulated_exit
from vpmu_emu.linux.kvm.msrfilter import kvm_msr_allowed, msr_denied_to_vmm
from vpmu_emu.linux.kvm.pmu import (
    is_vmware_backdoor_pmc,
    kvm_pmu_deliver_pmi,
    kvm_pmu_is_valid_msr,
    kvm_pmu_rdpmc_idx,
    kvm_pmu_rdpmc_vmware,
)
from vpmu_emu.linux.kvm.run import exit_for_signal, signal_pending
from vpmu_emu.linux.kvm.trigger import kvm_pmu_trigger_event
from vpmu_emu.linux.kvm.vcpu import (
    kvm_check_and_inject_events,
    kvm_vcpu_block,
    send_ipi,
)
from vpmu_emu.linux.kvm.vmx.debugregs import vmx_sync_dirty_debug_regs
from vpmu_emu.linux.kvm.vmx.exits import (
    finish_rdmsr,
    finish_rdpmc,
    finish_wrmsr,
    kvm_get_msr_common,
    kvm_inject_gp,
    kvm_set_msr_common,
    vmx_handle_exit,
)
from vpmu_emu.linux.kvm.vmx.lbr import intel_pmu_handle_lbr_msrs_access, intel_pmu_lbr_msr_now
from vpmu_emu.linux.kvm.vmx.vmx import (
    EXIT_FASTPATH_NONE,
    handle_exit_irqoff,
    vmx_cancel_injection,
    vmx_exit_handlers_fastpath,
    vmx_vcpu_enter,
    vmx_vcpu_exit,
)
from vpmu_emu.linux.native import cost
from vpmu_emu.linux.percpu import this_core, this_cpu
from vpmu_emu.linux.state import KVM_REQ_PMI, KVM_REQ_PMU
from vpmu_emu.linux.trace_kinds import MSR_OF_COMMON, MSR_OF_LBR, MSR_OF_PMU, TR_KVM_MSR
from vpmu_emu.machine import msr_index
from vpmu_emu.machine import state as machine
from vpmu_emu.machine.engine import run_core
from vpmu_emu.machine.msr import WRITE, WRITE_BLIND, note_msr_fault, note_rdpmc_fault
from vpmu_emu.machine.mutants import I_BOTH_WRMSRS, I_PMI_BEFORE_PMU, I_SPIN
from vpmu_emu.machine.ring import GP_FILTER, emit
from vpmu_emu.machine.u64 import LOW32, U32, U64, ZERO
from vpmu_emu.machine.vmcs import EXIT_MSR_READ, EXIT_MSR_WRITE, EXIT_RDPMC

COST_ENTER_GUEST = cost("vcpu_enter_guest")
COST_HANDLE_EXIT = cost("vmx_handle_exit")
COST_WRMSR_EXIT = cost("kvm_emulate_wrmsr")
COST_RDMSR_EXIT = cost("kvm_emulate_rdmsr")
COST_RDPMC_EXIT = cost("kvm_emulate_rdpmc")



@jit()
def kvm_emulate_rdpmc(S, M, E, vcpu):
    """RDPMC of a guest that may not do it itself."""
    index = this_core(S).regs[machine.RCX] & LOW32
    charge(S, E, COST_RDPMC_EXIT)
    pmu_ops.out(S, E, vcpu)
    pmu_ops.touched(S, M, vcpu)
    if is_vmware_backdoor_pmc(vcpu, index):
        finish_rdpmc(S, M, E, vcpu, index, kvm_pmu_rdpmc_vmware(S, vcpu, index))
        return
    i = kvm_pmu_rdpmc_idx(S, vcpu, index)
    if i < 0:
        pmu = vcpu.pmu
        gp, fixed = U64(pmu.nr_arch_gp_counters), U64(pmu.nr_arch_fixed_counters)
        note_rdpmc_fault(this_core(S), E, this_core(S).rip, index, gp, fixed, 1)
        kvm_inject_gp(vcpu)
    else:
        finish_rdpmc(S, M, E, vcpu, index, pmu_ops.rdpmc(S, E, vcpu, i))


@jit()
def _told(S, E, index, which, lbr, writes):
    whose = MSR_OF_PMU if which >= 0 else MSR_OF_LBR if lbr else MSR_OF_COMMON
    core = this_core(S)
    emit(E, core.t, TR_KVM_MSR, core.rip, index, U64(whose), U64(writes))


@jit()
def kvm_emulate_rdmsr(S, M, E, vcpu):
    """MSR_READ."""
    index = this_core(S).regs[machine.RCX] & LOW32
    if not kvm_msr_allowed(S, M, vcpu, index, 0):
        value = _edx_eax(S)
        if not msr_denied_to_vmm(S, M, E, vcpu, index, value, 0):
            note_msr_fault(this_core(S), E, index, ZERO, 0, GP_FILTER)
            kvm_inject_gp(vcpu)
        return
    charge(S, E, COST_RDMSR_EXIT)
    which = kvm_pmu_is_valid_msr(vcpu.pmu, index)
    lbr = which < 0 and pmu_ops.is_lbr_msr(S, vcpu, index)
    _told(S, E, index, which, lbr, 0)
    fault = 0
    if which >= 0:
        pmu_ops.out(S, E, vcpu)
        value = pmu_ops.get_msr(S, E, vcpu, which)
        pmu_ops.touched(S, M, vcpu)
    elif lbr:
        value = intel_pmu_handle_lbr_msrs_access(S, E, vcpu, index, ZERO, 0)
    else:
        fault, value = kvm_get_msr_common(S, M, E, vcpu, index, 0)
    finish_rdmsr(S, M, E, vcpu, index, value, fault)


@jit()
def kvm_emulate_wrmsr(S, M, E, vcpu):
    """MSR_WRITE; what the register held before is for the trace."""
    core = this_core(S)
    index = core.regs[machine.RCX] & LOW32
    value = _edx_eax(S)
    which = kvm_pmu_is_valid_msr(vcpu.pmu, index)
    if which >= 0:
        pmu_ops.out(S, E, vcpu)
    blind, vcpu.wrmsr_old = _peek_msr(S, M, E, vcpu, index)
    vcpu.wrmsr_kind = WRITE_BLIND if blind != 0 else WRITE
    if not kvm_msr_allowed(S, M, vcpu, index, 1):
        if not msr_denied_to_vmm(S, M, E, vcpu, index, value, 1):
            note_msr_fault(core, E, index, value, 1, GP_FILTER)
            kvm_inject_gp(vcpu)
        return
    charge(S, E, COST_WRMSR_EXIT)
    pmu = vcpu.pmu
    lbr = which < 0 and pmu_ops.is_lbr_msr(S, vcpu, index)
    _told(S, E, index, which, lbr, 1)
    fault = 0
    if lbr:
        intel_pmu_handle_lbr_msrs_access(S, E, vcpu, index, value, 1)
        finish_wrmsr(S, M, E, vcpu, index, value, fault)
        return
    if core.inject & I_BOTH_WRMSRS != ZERO:
        kvm_pmu_trigger_event(S, E, vcpu, pmu.pmc_counting_instructions)
    if which >= 0:
        fault = pmu_ops.set_msr(S, M, E, vcpu, which, value, 0)
        pmu_ops.touched(S, M, vcpu)
    else:
        fault = kvm_set_msr_common(S, M, E, vcpu, index, value)
        if index == msr_index.MSR_IA32_DEBUGCTLMSR and fault == 0:
            pmu_ops.debugctl_written(S, E, vcpu, value)
    finish_wrmsr(S, M, E, vcpu, index, value, fault)


@jit()
def _peek_msr(S, M, E, vcpu, index):
    """What RDMSR would have given the guest where it was left: (1 for nothing KVM knows of, value)."""
    if not kvm_msr_allowed(S, M, vcpu, index, 0):
        return 1, ZERO
    which = kvm_pmu_is_valid_msr(vcpu.pmu, index)
    if which >= 0:
        return 0, pmu_ops.peek_msr(S, E, vcpu, which)
    if pmu_ops.is_lbr_msr(S, vcpu, index):
        return 0, intel_pmu_lbr_msr_now(S, vcpu, index)
    return kvm_get_msr_common(S, M, E, vcpu, index, 1)


@jit()
def _edx_eax(S):
    core = this_core(S)
    return (core.regs[machine.RAX] & LOW32) | (core.regs[machine.RDX] << U32)


@jit()
def vcpu_requests(S, M, E, vcpu):
    """The vPMU's requests, KVM_REQ_PMU first: it may ask for KVM_REQ_PMI."""
    early = this_core(S).inject & I_PMI_BEFORE_PMU != ZERO
    if early and vcpu.requests & KVM_REQ_PMI != ZERO:
        vcpu.requests &= ~KVM_REQ_PMI
        kvm_pmu_deliver_pmi(S, E, vcpu)
    if vcpu.requests & KVM_REQ_PMU != ZERO:
        vcpu.requests &= ~KVM_REQ_PMU
        pmu_ops.handle_event(S, M, E, vcpu)
    if vcpu.requests & KVM_REQ_PMI != ZERO and not early:
        vcpu.requests &= ~KVM_REQ_PMI
        pmu_ops.deliver_pmi(S, M, vcpu)
        kvm_pmu_deliver_pmi(S, E, vcpu)


@jit()
def vcpu_enter_guest(S, M, E, vcpu, outside):
    """One pass: CODE_NEXT when its exit is handled, else why this core leaves the guest, a RUN_* code.

    A guest that was left in non-root mode goes on where it was. With `outside` 1 the core comes from
    KVM_RUN: the host's part of the call is no reason to return before the guest has done anything.
    """
    core = this_core(S)
    if core.vmx.nonroot == 0:
        charge(S, E, COST_ENTER_GUEST)
        vcpu_requests(S, M, E, vcpu)
        kvm_check_and_inject_events(S, M, E, vcpu)
        if signal_pending(S, vcpu):  # kvm_vcpu_exit_request(): requests are done, the guest is not entered
            vmx_cancel_injection(S, M, vcpu)
            return machine.CODE_NEXT
        pmu_ops.load(S, E, vcpu)
        if core.inject & I_SPIN != ZERO and vcpu.pmu.guest_ctx_loaded != 0:
            this_cpu(S).lockup = 1
            return machine.RUN_RESCHED
        pmu_ops.entry(S, M, E, vcpu)
        load_debug_registers(S, vcpu)
        vmx_vcpu_enter(S, M, E, vcpu)
        if outside != 0:
            E.t_slice = max(E.t_slice, core.t + 1)
    while True:
        if core.vmx.nonroot != 0:
            code = run_core(core, M, E)
            if code != machine.CODE_EXIT:
                return code
        if core.stop != 0:
            return machine.RUN_STOPPED
        vmx_vcpu_exit(S, M, E, vcpu)
        pmu_ops.exit_(S, M, E, vcpu)
        if vmx_exit_handlers_fastpath(S, M, E, vcpu) == 0:
            break
        pmu_ops.entry(S, M, E, vcpu)
        vmx_vcpu_enter(S, M, E, vcpu)
    pmu_ops.put(S, E, vcpu)
    vmx_sync_dirty_debug_regs(S, M, vcpu)
    handle_exit_irqoff(S, E)
    if vcpu.exit_fastpath == EXIT_FASTPATH_NONE:
        charge(S, E, COST_HANDLE_EXIT)
        handle_emulated_exit(S, M, E, vcpu)
        reason = core.vmx.exit_reason  # of the exit, or of what the emulator met
        if reason == EXIT_MSR_WRITE:
            kvm_emulate_wrmsr(S, M, E, vcpu)
        elif reason == EXIT_MSR_READ:
            kvm_emulate_rdmsr(S, M, E, vcpu)
        elif reason == EXIT_RDPMC:
            kvm_emulate_rdpmc(S, M, E, vcpu)
        else:
            vmx_handle_exit(S, M, E, vcpu)
        send_ipi(S, E, vcpu)
    return machine.CODE_NEXT


@jit()
def vcpu_run(S, M, E, vcpu):
    """KVM_RUN of the loaded vCPU.

    Until it goes back to the VMM (RUN_USER), the core is wanted for something else (RUN_RESCHED), the
    turn is over (RUN_TURN), it is Python's (RUN_SLICE), or the run is over (RUN_STOPPED).
    """
    core = this_core(S)
    outside = 1 if core.vmx.nonroot == 0 and vcpu.completed == 0 else 0
    vcpu.completed = 0
    while True:
        if core.vmx.nonroot == 0:
            if core.stop != 0:
                return machine.RUN_STOPPED
            if vcpu.mp_state != 0 or vcpu.apic_events != 0:
                blocked = kvm_vcpu_block(S, M, E, vcpu)
                if blocked != 0:
                    return blocked
            if this_cpu(S).need_resched != 0:  # xfer_to_guest_mode_handle_work()
                return machine.RUN_RESCHED
            # a watchpoint on an access that KVM has just emulated, or a debugger that comes back to it
            if E.stop_request != 0 or (core.t >= E.stop_t and S.this_cpu == E.stop_cpu):
                return machine.RUN_WATCH
        code = vcpu_enter_guest(S, M, E, vcpu, outside)
        if code != machine.CODE_NEXT:
            return code
        outside = 0
        if vcpu.user_exit < 0 and signal_pending(S, vcpu):  # xfer_to_guest_mode_handle_work()
            exit_for_signal(M, vcpu)
        if vcpu.user_exit >= 0:
            return machine.RUN_USER
