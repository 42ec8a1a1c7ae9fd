"""A vCPU on its core: loaded and put, asleep and awake, its events, VM entry, VM exit, the fast path.

`kvm/x86.py` has the loop that calls these, in its order. arch/x86/kvm/x86.c, vmx/vmx.c.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.linux import patches, state
from vpmu_emu.linux.charge import charge
from vpmu_emu.linux.hrtimer import host_timer_program
from vpmu_emu.linux.irq_vectors import (
    CALL_FUNCTION_SINGLE_VECTOR,
    KVM_VPMU_VECTOR,
    LOCAL_TIMER_VECTOR,
)
from vpmu_emu.linux.kvm.debugregs import (
    KVM_GUESTDBG_SINGLESTEP,
    kvm_deliver_exception_payload,
)
from vpmu_emu.linux.kvm.irq import kvm_apic_accept_events, kvm_irq_delivery_to_apic
from vpmu_emu.linux.kvm.lapic import (
    kvm_lapic_expired_hv_timer,
    kvm_set_lapic_tscdeadline_msr,
    vmx_update_hv_timer,
    vmx_update_msr_bitmap_x2apic,
)
from vpmu_emu.linux.kvm.msrfilter import kvm_msr_allowed
from vpmu_emu.linux.kvm.nmi import process_nmi
from vpmu_emu.linux.kvm.run import dm_request_for_irq_injection, exit_for_real_mode
from vpmu_emu.linux.kvm.vmx.exits import finish_wrmsr, kvm_skip_emulated_instruction
from vpmu_emu.linux.native import cost, retire_work, wrmsrl
from vpmu_emu.linux.overflow_handler import kvm_make_request
from vpmu_emu.linux.patches import lacks
from vpmu_emu.linux.percpu import kvm_get_running_vcpu, this_core, this_cpu
from vpmu_emu.linux.perf.event import perf_init
from vpmu_emu.linux.perf.pmi import handle_nmis, perf_event_nmi_handler
from vpmu_emu.linux.printk import LOG_SPURIOUS_VECTOR, printk
from vpmu_emu.linux.space import guest_space
from vpmu_emu.linux.time import sysvec_apic_timer_interrupt
from vpmu_emu.linux.trace_kinds import TR_FASTPATH, TR_HOST_IRQ, TR_INJECT_NMI
from vpmu_emu.machine import msr_index, vmcs
from vpmu_emu.machine import state as machine
from vpmu_emu.machine.lapic import (
    lapic_ack,
    lapic_pending,
    lapic_put_back,
    lapic_timer_expire,
    lapic_write,
)
from vpmu_emu.machine.msr import WRITE, WRITE_BLIND
from vpmu_emu.machine.processor_flags import X86_EFLAGS_IF
from vpmu_emu.machine.ring import emit
from vpmu_emu.machine.u64 import BYTE, LOW32, ONE, U3, U8, U32, U64, ZERO
from vpmu_emu.machine.vectors import VECTOR_BP, VECTOR_DB
from vpmu_emu.machine.vmcs import vmptrld, vmread, vmwrite
from vpmu_emu.machine.vmx import vm_entry
from vpmu_emu.tables.modes import kernel_version
from vpmu_emu.tables.msrs import ROW

COST_IOCTL = cost("kvm_vcpu_ioctl")
COST_VCPU_RUN = cost("vcpu_run")
COST_VM_ENTRY = cost("vm_entry")
COST_VM_EXIT = cost("vm_exit")
COST_INJECT = cost("inject_event")
COST_NMI_IRQOFF = cost("handle_exception_nmi_irqoff")
COST_IRQ_IRQOFF = cost("handle_external_interrupt_irqoff")
COST_IRQ_ENTRY = cost("irq_entry")
COST_VPMI = cost("sysvec_perf_guest_mediated_pmi_handler")
COST_HALT = cost("kvm_vcpu_halt")
COST_FASTPATH_WRMSR = cost("kvm_lapic_reg_write")

V7_0 = kernel_version(7, 0)
EXIT_FASTPATH_NONE, EXIT_FASTPATH_REENTER_GUEST, EXIT_FASTPATH_EXIT_HANDLED = 0, 1, 2
# a shorthand, a logical destination, another mode than fixed
ICR_NOT_FAST = msr_index.APIC_SHORT_MASK | msr_index.APIC_DEST_LOGICAL | msr_index.APIC_MODE_MASK
R_X2APIC_ICR = ROW["IA32_X2APIC_ICR"]
_REQUESTS = state.KVM_REQ_NMI | state.KVM_REQ_PMU | state.KVM_REQ_PMI | state.KVM_REQ_EVENT
_NMI_BLOCKED = vmcs.STI_BLOCKING | vmcs.MOV_SS_BLOCKING | vmcs.NMI_BLOCKING
_SHADOWS = vmcs.STI_BLOCKING | vmcs.MOV_SS_BLOCKING
_AR_DPL = U64(5)
INTR_TYPE = U64(7 << 8)


@jit()
def _copy_lapic(to, source):
    to.software = source.software
    to.timer_mode_mask = source.timer_mode_mask
    to.apic_base = source.apic_base
    to.id = source.id
    to.tpr = source.tpr
    to.spiv = source.spiv
    to.esr = source.esr
    to.icr = source.icr
    to.ldr = source.ldr
    to.dfr = source.dfr
    to.ipi_out = source.ipi_out
    for i in range(4):
        to.irr[i] = source.irr[i]
        to.isr[i] = source.isr[i]
    for i in range(7):
        to.lvt[i] = source.lvt[i]
    to.divide = source.divide
    to.init_count = source.init_count
    to.tsc_deadline = source.tsc_deadline
    to.timer_start = source.timer_start
    to.timer_at = source.timer_at


@jit()
def vcpu_load(S, M, E, vcpu):
    """A vCPU comes to this core: its VMCS, and what of the guest lies elsewhere (kvm_arch_vcpu_load)."""
    core = this_core(S)
    S.this_vcpu = this_cpu(S).vcpu = vcpu.vcpu_idx
    vmptrld(core, vcpu.vmcs)
    core.vmx.apicv = S.config.apicv
    _copy_lapic(core.vapic, vcpu.vapic)
    for i in range(machine.N_REGS):
        core.regs[i] = vcpu.regs[i]
    core.cr2 = vcpu.cr2
    core.star = vcpu.star
    core.lstar = vcpu.lstar
    core.cstar = vcpu.cstar
    core.fmask = vcpu.fmask
    core.kernel_gs_base = vcpu.kernel_gs_base
    core.tsc_aux = vcpu.tsc_aux
    core.sysenter_cs = vcpu.sysenter_cs
    core.sysenter_esp = vcpu.sysenter_esp
    core.sysenter_eip = vcpu.sysenter_eip
    core.pat = vcpu.pat
    core.power_ctl = vcpu.power_ctl
    core.xcr0 = vcpu.xcr0  # kvm_load_guest_xsave_state()
    guest_space(S, vcpu, vmread(core, M, vmcs.V_CR3))
    vcpu.cpu = S.this_cpu
    if vcpu.launched == 0:
        vcpu.launched = 1
        vcpu.recalc_intercepts = 1
        perf_init(S, E)


@jit()
def kvm_sched_in(S, E, vcpu):
    """The vCPU's thread was off the core: events of counters that nobody uses are released."""
    if vcpu.pmu.version != 0 and vcpu.pmu.event_count != 0:
        vcpu.pmu.need_cleanup = 1
        kvm_make_request(S, E, vcpu, state.KVM_REQ_PMU)


@jit()
def vcpu_put(S):
    """The reverse: the core's vCPU is in the record and its VMCS alone (kvm_arch_vcpu_put)."""
    core = this_core(S)
    host = this_cpu(S)
    vcpu = S.vcpus[host.vcpu]
    host.vcpu = -1
    _copy_lapic(vcpu.vapic, core.vapic)
    for i in range(machine.N_REGS):
        vcpu.regs[i] = core.regs[i]
    vcpu.cr2 = core.cr2
    vcpu.star = core.star
    vcpu.lstar = core.lstar
    vcpu.cstar = core.cstar
    vcpu.fmask = core.fmask
    vcpu.kernel_gs_base = core.kernel_gs_base
    vcpu.tsc_aux = core.tsc_aux
    vcpu.sysenter_cs = core.sysenter_cs
    vcpu.sysenter_esp = core.sysenter_esp
    vcpu.sysenter_eip = core.sysenter_eip
    vcpu.pat = core.pat
    vcpu.power_ctl = core.power_ctl
    vcpu.xcr0 = core.xcr0


@jit()
def host_irq(S, E, vector):
    """One maskable interrupt of the host, acknowledged already."""
    core = this_core(S)
    host = this_cpu(S)
    emit(E, core.t, TR_HOST_IRQ, ZERO, U64(vector), ZERO, ZERO)
    retire_work(S, E, COST_IRQ_ENTRY)
    wrmsrl(S, E, msr_index.IA32_X2APIC_EOI, ZERO)
    if vector == LOCAL_TIMER_VECTOR:
        sysvec_apic_timer_interrupt(S, E)
    elif vector == CALL_FUNCTION_SINGLE_VECTOR:
        this_cpu(S).need_resched = 1
    elif vector == KVM_VPMU_VECTOR and lacks(S, patches.VECTOR):
        printk(S, LOG_SPURIOUS_VECTOR, U64(vector))
    elif vector == KVM_VPMU_VECTOR:
        # A PMI with this vector belongs to the guest, even if it comes late.
        host.vpmi_irqs += ONE
        retire_work(S, E, COST_VPMI)
        if not lacks(S, patches.HANDLER):
            kvm_make_request(S, E, kvm_get_running_vcpu(S), state.KVM_REQ_PMI)
    host.interrupted = state.FROM_KERNEL
    handle_nmis(S, E)


@jit()
def host_irqs_enable(S, E):
    """local_irq_enable(): take every interrupt that is due."""
    core = this_core(S)
    while True:
        if core.lapic.timer_at <= core.t:
            lapic_timer_expire(core, core.lapic)
        vector = lapic_pending(core.lapic)
        if vector < 0:
            return
        lapic_ack(core.lapic, vector)
        host_irq(S, E, vector)


@jit()
def kvm_vcpu_has_events(S, M, vcpu):
    """Is there anything that wakes a halted guest?"""
    core = this_core(S)
    blocking = vmread(core, M, vmcs.V_INTERRUPTIBILITY)
    if vcpu.exception >= 0 or vcpu.requests & state.KVM_REQ_NMI != ZERO:
        return True
    if vcpu.pv_unhalted != 0:
        return True
    if vcpu.nmi_pending > 0 and blocking & _NMI_BLOCKED == ZERO:
        return True
    open_ = vmread(core, M, vmcs.V_RFLAGS) & X86_EFLAGS_IF != ZERO and blocking & _SHADOWS == ZERO
    return open_ and lapic_pending(core.vapic) >= 0


@jit()
def _accept_messages(S, M, E, vcpu):
    # The state of the vCPU is made anew where it lies while no core has it.
    vcpu_put(S)
    kvm_apic_accept_events(S, M, vcpu)
    this_cpu(S).space = -1
    vcpu_load(S, M, E, vcpu)


@jit()
def kvm_vcpu_block(S, M, E, vcpu):
    """INIT and startup messages, and the sleep of the vCPU's thread until there is something to do.

    0 if the guest goes on, RUN_RESCHED if the thread sleeps, RUN_USER if it goes back to its VMM.
    """
    core = this_core(S)
    task = S.tasks[vcpu.task]
    if vcpu.apic_events != 0:
        if vcpu.mp_state == state.MP_STATE_UNINITIALIZED:
            vcpu.user_exit = state.USER_AGAIN
        _accept_messages(S, M, E, vcpu)
        real_mode = vmread(core, M, vmcs.V_EFER) == ZERO and vcpu.mp_state == state.MP_STATE_RUNNABLE
        if vcpu.user_exit < 0 and real_mode:
            exit_for_real_mode(S, M, vcpu)
        if vcpu.user_exit >= 0:
            return machine.RUN_USER
    if vcpu.mp_state == state.MP_STATE_RUNNABLE:
        return 0
    if vcpu.mp_state == state.MP_STATE_UNINITIALIZED or vcpu.mp_state == state.MP_STATE_INIT_RECEIVED:
        task.state = state.TASK_INTERRUPTIBLE
        task.wake_at = machine.NEVER
        return machine.RUN_RESCHED
    kvm_lapic_expired_hv_timer(S, E, vcpu)
    if kvm_vcpu_has_events(S, M, vcpu) or vcpu.requests & state.KVM_REQ_PMI != ZERO:
        vcpu.mp_state = state.MP_STATE_RUNNABLE
        vcpu.pv_unhalted = 0
        return 0
    if vcpu.mp_state == state.MP_STATE_HALTED:
        vcpu.mp_state = state.MP_STATE_ASLEEP
        charge(S, E, COST_HALT)
    task.state = state.TASK_INTERRUPTIBLE
    # Its own timer can wake it only with interrupts on.
    task.wake_at = machine.NEVER
    if vmread(core, M, vmcs.V_RFLAGS) & X86_EFLAGS_IF != ZERO:
        task.wake_at = core.vapic.timer_at
    host_timer_program(S, E)
    return machine.RUN_RESCHED


@jit()
def kvm_check_and_inject_events(S, M, E, vcpu):
    """At most one event for the next entry: exception, NMI, or without APICv an interrupt."""
    core = this_core(S)
    if vcpu.recalc_intercepts != 0:  # KVM_REQ_RECALC_INTERCEPTS
        vcpu.recalc_intercepts = 0
        vmx_update_msr_bitmap_x2apic(S, M, vcpu)
    vcpu.requests &= ~state.KVM_REQ_EVENT
    if vcpu.requests & state.KVM_REQ_NMI != ZERO:
        process_nmi(M, vcpu)
    info = ZERO
    blocking = vmread(core, M, vmcs.V_INTERRUPTIBILITY)
    proc = vmread(core, M, vmcs.V_PROC)
    wanted = proc & ~(vmcs.PROC_NMI_WINDOW | vmcs.PROC_INTR_WINDOW)
    vector = -1
    if S.config.apicv == 0:
        vector = lapic_pending(core.vapic)
    if vcpu.exception >= 0:
        kind = vmcs.TYPE_HARD_EXCEPTION
        if vcpu.exception == VECTOR_BP:  # kvm_exception_is_soft()
            kind = vmcs.TYPE_SOFT_EXCEPTION
            vmwrite(core, M, vmcs.V_ENTRY_LEN, vcpu.event_exit_inst_len)
        elif vcpu.exception == VECTOR_DB:
            kvm_deliver_exception_payload(M, vcpu)
        info = vmcs.INTR_VALID | (kind << U8) | U64(vcpu.exception)
        if vcpu.exception_has_error != 0:
            info |= vmcs.INTR_HAS_ERROR
            vmwrite(core, M, vmcs.V_ENTRY_ERROR, vcpu.exception_error)
        vcpu.exception = -1
    elif vcpu.nmi_injected != 0:
        vcpu.nmi_injected = 0
        info = vmcs.NMI_INFO
    elif vcpu.interrupt >= 0 and blocking & _SHADOWS == ZERO and (
        vmread(core, M, vmcs.V_RFLAGS) & X86_EFLAGS_IF != ZERO
    ):
        info = vmcs.INTR_VALID | U64(vcpu.interrupt)
        vcpu.interrupt = -1
    elif vcpu.nmi_pending > 0 and blocking & _NMI_BLOCKED == ZERO:
        vcpu.nmi_pending -= 1
        info = vmcs.NMI_INFO
        emit(E, core.t, TR_INJECT_NMI, ZERO, U64(vcpu.nmi_pending), ZERO, ZERO)
    elif vector >= 0 and blocking & _SHADOWS == ZERO and (
        vmread(core, M, vmcs.V_RFLAGS) & X86_EFLAGS_IF != ZERO
    ):
        lapic_ack(core.vapic, vector)
        info = vmcs.INTR_VALID | U64(vector)
        vector = lapic_pending(core.vapic)
    if vcpu.nmi_pending > 0:
        wanted |= vmcs.PROC_NMI_WINDOW
    if vector >= 0 or vcpu.interrupt >= 0 or dm_request_for_irq_injection(S, M, vcpu):
        wanted |= vmcs.PROC_INTR_WINDOW
    if wanted != proc:
        vmwrite(core, M, vmcs.V_PROC, wanted)
    vcpu.entry_intr_info = info
    if info != ZERO:
        vmwrite(core, M, vmcs.V_ENTRY_INTR, info)
        charge(S, E, COST_INJECT)
    if vcpu.guest_debug & KVM_GUESTDBG_SINGLESTEP != ZERO:
        # vmx_vcpu_run(): an entry with TF and a shadow would ask for BS among the pending exceptions.
        vmwrite(core, M, vmcs.V_INTERRUPTIBILITY, vmread(core, M, vmcs.V_INTERRUPTIBILITY) & ~_SHADOWS)


@jit()
def vmx_vcpu_enter(S, M, E, vcpu):
    """VM entry. Modifies core.stop if the VMCS is refused."""
    core = this_core(S)
    charge(S, E, COST_VCPU_RUN)
    charge(S, E, COST_VM_ENTRY)
    vmx_update_hv_timer(S, M)
    vcpu.entries += ONE
    reason = vm_entry(core, M, E)
    if reason != 0:
        core.stop = machine.STOP_SHUTDOWN
        core.stop_info = U64(reason)
    elif core.vmx.nonroot == 0:  # a triple fault while injecting
        core.stop_info = vcpu.entry_intr_info & BYTE


@jit()
def vmx_complete_interrupts(S, M, vcpu):
    """What the exit kept from being delivered is tried again at the next entry."""
    core = this_core(S)
    info = core.vmx.idt_vectoring
    if info & vmcs.INTR_VALID == ZERO:
        return
    vcpu.exception_has_payload = 0
    kind = info & INTR_TYPE
    vector = np.int64(info & BYTE)
    if kind == vmcs.NMI_INFO & INTR_TYPE:
        vcpu.nmi_injected = 1
        blocking = vmread(core, M, vmcs.V_INTERRUPTIBILITY)
        vmwrite(core, M, vmcs.V_INTERRUPTIBILITY, blocking & ~vmcs.NMI_BLOCKING)
    elif kind == vmcs.TYPE_HARD_EXCEPTION << U8:
        vcpu.exception = vector
        vcpu.exception_pending = 0
        vcpu.exception_has_error = 1 if info & vmcs.INTR_HAS_ERROR != ZERO else 0
        vcpu.exception_error = vmread(core, M, vmcs.V_IDT_VECTORING_ERROR)
    elif S.vms[vcpu.vm].irqchip == 0:
        vcpu.interrupt = vector
    else:
        lapic_put_back(core.vapic, vector)


@jit()
def vmx_vcpu_exit(S, M, E, vcpu):
    """From the VM exit to the end of the assembly: an NMI that caused it is handled right here."""
    core = this_core(S)
    vmx_complete_interrupts(S, M, vcpu)
    vcpu.cpl = np.int64((vmread(core, M, vmcs.V_SS_AR) >> _AR_DPL) & U3)
    # The transition is charged first: NMIs stay blocked until the handler below has returned.
    nmi = core.vmx.exit_reason == vmcs.EXIT_EXCEPTION_NMI and core.vmx.exit_intr_info == vmcs.NMI_INFO
    if nmi:
        this_cpu(S).in_nmi = 1
    charge(S, E, COST_VM_EXIT)
    if nmi:
        retire_work(S, E, COST_NMI_IRQOFF)
        this_cpu(S).interrupted = state.FROM_GUEST  # kvm_guest_state()
        perf_event_nmi_handler(S, E)
        this_cpu(S).interrupted = state.FROM_KERNEL
        this_cpu(S).in_nmi = 0
        handle_nmis(S, E)


@jit()
def send_ipi(S, E, vcpu):
    """What the exit that was just handled has put into the ICR goes out."""
    if this_core(S).vapic.ipi_out != 0:
        kvm_irq_delivery_to_apic(S, E, vcpu)


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
    elif reason == vmcs.EXIT_INVD and S.config.kernel >= V7_0:
        kvm_skip_emulated_instruction(S, M, E, vcpu)  # handle_fastpath_invd()
        done = EXIT_FASTPATH_REENTER_GUEST
    elif reason == vmcs.EXIT_MSR_WRITE:
        index = core.regs[machine.RCX] & LOW32
        value = (core.regs[machine.RAX] & LOW32) | (core.regs[machine.RDX] << U32)
        if index == msr_index.MSR_IA32_TSC_DEADLINE:
            charge(S, E, COST_FASTPATH_WRMSR)
            vcpu.wrmsr_old = core.vapic.tsc_deadline
            vcpu.wrmsr_kind = WRITE if kvm_msr_allowed(S, M, vcpu, index, 0) else WRITE_BLIND
            kvm_set_lapic_tscdeadline_msr(S, M, value)
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
    waits = waits or vcpu.requests & _REQUESTS != ZERO
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
