"""VM entry, VM exit, and what is done before interrupts are on again: arch/x86/kvm/vmx/vmx.c."""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.linux import state
from vpmu_emu.linux.charge import charge
from vpmu_emu.linux.kvm import pmu_ops
from vpmu_emu.linux.kvm.lapic import (
    kvm_lapic_expired_hv_timer,
    kvm_set_lapic_tscdeadline_msr,
)
from vpmu_emu.linux.kvm.msrfilter import kvm_msr_allowed
from vpmu_emu.linux.kvm.run import signal_pending
from vpmu_emu.linux.kvm.vcpu import host_irq, host_irqs_enable, send_ipi
from vpmu_emu.linux.kvm.vmx.exits import (
    finish_wrmsr,
    kvm_emulate_halt,
    kvm_skip_emulated_instruction,
)
from vpmu_emu.linux.kvm.vmx.registers import vmx_clear_nmi_mask, vmx_get_cpl
from vpmu_emu.linux.native import cost, retire_work
from vpmu_emu.linux.overflow_handler import kvm_make_request
from vpmu_emu.linux.percpu import this_core, this_cpu
from vpmu_emu.linux.perf.pmi import default_do_nmi, handle_nmis
from vpmu_emu.linux.trace_kinds import TR_FASTPATH
from vpmu_emu.machine import msr_index, vmcs
from vpmu_emu.machine import state as machine
from vpmu_emu.machine.clock import tsc_at, tsc_reaching
from vpmu_emu.machine.lapic import (
    lapic_pending,
    lapic_put_back,
    lapic_write,
)
from vpmu_emu.machine.msr import WRITE, WRITE_BLIND
from vpmu_emu.machine.ring import emit
from vpmu_emu.machine.u64 import BYTE, LOW32, ONE, U8, U32, U64, ZERO
from vpmu_emu.machine.vmcs import vmread, vmwrite
from vpmu_emu.machine.vmx import vm_entry
from vpmu_emu.tables.modes import kernel_version
from vpmu_emu.tables.msrs import ROW

COST_VCPU_RUN = cost("vcpu_run")
COST_VM_ENTRY = cost("vm_entry")
COST_VM_EXIT = cost("vm_exit")
COST_NMI_IRQOFF = cost("handle_exception_nmi_irqoff")
COST_IRQ_IRQOFF = cost("handle_external_interrupt_irqoff")
COST_FASTPATH_WRMSR = cost("kvm_lapic_reg_write")

V6_12, V7_0 = kernel_version(6, 12), kernel_version(7, 0)
EXIT_FASTPATH_NONE, EXIT_FASTPATH_REENTER_GUEST, EXIT_FASTPATH_EXIT_HANDLED = 0, 1, 2
# a shorthand, a logical destination, another mode than fixed
ICR_NOT_FAST = msr_index.APIC_SHORT_MASK | msr_index.APIC_DEST_LOGICAL | msr_index.APIC_MODE_MASK
R_X2APIC_ICR = ROW["IA32_X2APIC_ICR"]
_REQUESTS = state.KVM_REQ_NMI | state.KVM_REQ_PMU | state.KVM_REQ_PMI | state.KVM_REQ_EVENT
INTR_TYPE = U64(7 << 8)


@jit()
def vmx_update_hv_timer(S, M):
    """Arm the preemption timer for the guest's own timer. The last thing before VM entry."""
    core = this_core(S)
    pin = vmread(core, M, vmcs.V_PIN) & ~vmcs.PIN_PREEMPTION
    at = core.vapic.timer_at
    if at != machine.NEVER:
        cycles = ZERO
        if at > core.t:
            cycles = tsc_reaching(core, at) - tsc_at(core, core.t)
        if cycles <= LOW32:
            pin |= vmcs.PIN_PREEMPTION
            vmwrite(core, M, vmcs.V_PREEMPTION, cycles)
    vmwrite(core, M, vmcs.V_PIN, pin)


@jit()
def vmx_vcpu_enter(S, M, E, vcpu):
    """VM entry. Modifies core.stop if the VMCS is refused."""
    core = this_core(S)
    charge(S, E, COST_VCPU_RUN)
    charge(S, E, COST_VM_ENTRY)
    vmx_update_hv_timer(S, M)
    vcpu.entries += ONE
    vcpu.entered_t = this_core(S).t
    reason = vm_entry(core, M, E)
    if reason != 0:
        core.stop = machine.STOP_SHUTDOWN
        core.stop_info = U64(reason)
    elif core.vmx.nonroot == 0:  # a triple fault while injecting
        core.stop_info = vcpu.entry_intr_info & BYTE


@jit()
def _complete_interrupts(S, M, vcpu, info, error):
    # __vmx_complete_interrupts(): the event `info` is tried again at the next entry.
    core = this_core(S)
    if info & vmcs.INTR_VALID == ZERO:
        return
    vcpu.exception_has_payload = 0
    kind = info & INTR_TYPE
    vector = np.int64(info & BYTE)
    if kind == vmcs.NMI_INFO & INTR_TYPE:
        vcpu.nmi_injected = 1
        vmx_clear_nmi_mask(M, vcpu)
    elif kind == vmcs.TYPE_HARD_EXCEPTION << U8 or kind == vmcs.TYPE_SOFT_EXCEPTION << U8:
        vcpu.exception = vector
        vcpu.exception_pending = 0
        vcpu.exception_has_error = 1 if info & vmcs.INTR_HAS_ERROR != ZERO else 0
        vcpu.exception_error = error
    elif S.vms[vcpu.vm].irqchip == 0:
        vcpu.interrupt = vector
    else:
        lapic_put_back(core.vapic, vector)


@jit()
def vmx_complete_interrupts(S, M, vcpu):
    """What the exit kept from being delivered is tried again at the next entry."""
    core = this_core(S)
    error = vmread(core, M, vmcs.V_IDT_VECTORING_ERROR)
    _complete_interrupts(S, M, vcpu, core.vmx.idt_vectoring, error)


@jit()
def vmx_cancel_injection(S, M, vcpu):
    """There will be no entry now: the event that it would have brought waits for the next one."""
    _complete_interrupts(S, M, vcpu, vcpu.entry_intr_info, vcpu.exception_error)
    vcpu.entry_intr_info = ZERO
    vmwrite(this_core(S), M, vmcs.V_ENTRY_INTR, ZERO)


@jit()
def vmx_vcpu_exit(S, M, E, vcpu):
    """From the VM exit to the end of the assembly: an NMI that caused it is handled right here."""
    core = this_core(S)
    vcpu.guest_t += core.t - vcpu.entered_t
    vmx_complete_interrupts(S, M, vcpu)
    vcpu.cpl = vmx_get_cpl(M, vcpu)
    # The transition is charged first: NMIs stay blocked until the handler below has returned.
    nmi = core.vmx.exit_reason == vmcs.EXIT_EXCEPTION_NMI and core.vmx.exit_intr_info == vmcs.NMI_INFO
    if nmi:
        this_cpu(S).in_nmi = 1
    charge(S, E, COST_VM_EXIT)
    if nmi:
        retire_work(S, E, COST_NMI_IRQOFF)
        this_cpu(S).interrupted = state.FROM_GUEST  # kvm_guest_state()
        default_do_nmi(S, E)
        this_cpu(S).interrupted = state.FROM_KERNEL
        this_cpu(S).in_nmi = 0
        handle_nmis(S, E)


@jit()
def handle_fastpath_set_x2apic_icr_irqoff(S, M, E, vcpu, data):
    """A fixed interrupt to one vCPU by its number; False if that is not what ICR asks for."""
    core = this_core(S)
    reserved = vcpu.msr_reserved[R_X2APIC_ICR] | ICR_NOT_FAST
    if (
        core.vapic.apic_base & msr_index.X2APIC_ENABLE == ZERO
        or data & reserved != ZERO
        or data >> U32 == LOW32
    ):
        return False
    charge(S, E, COST_FASTPATH_WRMSR)
    vcpu.wrmsr_old, vcpu.wrmsr_kind = core.vapic.icr, WRITE
    lapic_write(core, core.vapic, msr_index.IA32_X2APIC_ICR, data)
    if S.config.apicv == 0 and lapic_pending(core.vapic) >= 0:
        kvm_make_request(S, E, vcpu, state.KVM_REQ_EVENT)  # without APICv software injects it
    finish_wrmsr(S, M, E, vcpu, msr_index.IA32_X2APIC_ICR, data, 0)
    return True


@jit()
def vmx_exit_handlers_fastpath(S, M, E, vcpu):
    """What needs no slow path; vcpu.exit_fastpath says so. 1: the guest goes on within the inner loop."""
    core = this_core(S)
    reason = core.vmx.exit_reason
    done = EXIT_FASTPATH_NONE
    if reason == vmcs.EXIT_PREEMPTION_TIMER:
        kvm_lapic_expired_hv_timer(S, E, vcpu)
        done = EXIT_FASTPATH_REENTER_GUEST
    elif not pmu_ops.is_fastpath_emulation_allowed(S, vcpu):
        done = EXIT_FASTPATH_NONE
    elif reason == vmcs.EXIT_INVD and S.config.kernel >= V7_0:
        kvm_skip_emulated_instruction(S, M, E, vcpu)  # handle_fastpath_invd()
        done = EXIT_FASTPATH_REENTER_GUEST
    elif reason == vmcs.EXIT_HLT and S.config.kernel >= V6_12:
        kvm_emulate_halt(S, M, E, vcpu)  # handle_fastpath_hlt()
        runs = vcpu.mp_state == state.MP_STATE_RUNNABLE
        done = EXIT_FASTPATH_REENTER_GUEST if runs else EXIT_FASTPATH_EXIT_HANDLED
    elif reason == vmcs.EXIT_MSR_WRITE:
        index = core.regs[machine.RCX] & LOW32
        value = (core.regs[machine.RAX] & LOW32) | (core.regs[machine.RDX] << U32)
        if index == msr_index.MSR_IA32_TSC_DEADLINE:
            charge(S, E, COST_FASTPATH_WRMSR)
            vcpu.wrmsr_old = core.vapic.tsc_deadline
            vcpu.wrmsr_kind = WRITE if kvm_msr_allowed(S, M, vcpu, index, 0) else WRITE_BLIND
            kvm_set_lapic_tscdeadline_msr(S, M, vcpu, value)
            finish_wrmsr(S, M, E, vcpu, msr_index.MSR_IA32_TSC_DEADLINE, value, 0)
            done = EXIT_FASTPATH_REENTER_GUEST
        elif index == msr_index.IA32_X2APIC_ICR and handle_fastpath_set_x2apic_icr_irqoff(
            S, M, E, vcpu, value
        ):
            # Older kernels leave the inner loop after an ICR write.
            stays = S.config.kernel >= V7_0
            done = EXIT_FASTPATH_REENTER_GUEST if stays else EXIT_FASTPATH_EXIT_HANDLED
    send_ipi(S, E, vcpu)
    # kvm_vcpu_exit_request(): work that waits needs the slow path.
    waits = vcpu.exception >= 0 or vcpu.user_exit >= 0  # a single step over what was emulated
    waits = waits or vcpu.requests & _REQUESTS != ZERO or signal_pending(S, vcpu)
    if done == EXIT_FASTPATH_REENTER_GUEST and waits:
        done = EXIT_FASTPATH_EXIT_HANDLED
    vcpu.exit_fastpath = done
    if done != EXIT_FASTPATH_NONE:
        emit(E, core.t, TR_FASTPATH, core.rip, reason, U64(done), ZERO)
    if done == EXIT_FASTPATH_REENTER_GUEST:
        vcpu.fastpaths += ONE
        return 1
    return 0


@jit()
def handle_exit_irqoff(S, E):
    """The external interrupt that ended the guest's turn is dispatched here, then interrupts are on."""
    core = this_core(S)
    if core.vmx.exit_reason == vmcs.EXIT_EXTERNAL_INTERRUPT:
        charge(S, E, COST_IRQ_IRQOFF)
        this_cpu(S).interrupted = state.FROM_GUEST
        host_irq(S, E, np.int64(core.vmx.exit_intr_info & BYTE))
        this_cpu(S).interrupted = state.FROM_KERNEL
    host_irqs_enable(S, E)
