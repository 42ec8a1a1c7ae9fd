"""A vCPU on its core: loaded and put, asleep and awake, and what is injected next.

`kvm/x86.py` has the loop that calls these, in its order. arch/x86/kvm/x86.c.
"""

from __future__ import annotations

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
    vmx_update_msr_bitmap_x2apic,
)
from vpmu_emu.linux.kvm.nmi import process_nmi
from vpmu_emu.linux.kvm.run import (
    dm_request_for_irq_injection,
    exit_for_real_mode,
    exit_for_signal,
    signal_pending,
)
from vpmu_emu.linux.kvm.vmx.registers import (
    kvm_get_rflags,
    kvm_read_cr3,
    vmx_enable_windows,
    vmx_get_efer,
    vmx_inject_exception,
    vmx_inject_irq,
    vmx_inject_nmi,
    vmx_interrupt_blocked,
    vmx_nmi_blocked,
    vmx_set_interrupt_shadow,
)
from vpmu_emu.linux.native import cost, retire_work, wrmsrl
from vpmu_emu.linux.overflow_handler import kvm_make_request
from vpmu_emu.linux.patches import lacks
from vpmu_emu.linux.percpu import this_core, this_cpu
from vpmu_emu.linux.perf.event import perf_init
from vpmu_emu.linux.perf.pmi import account_pmi, handle_nmis, vcpu_bit
from vpmu_emu.linux.printk import LOG_SPURIOUS_VECTOR, LOG_STRAY_PMI, printk, printk_once
from vpmu_emu.linux.space import guest_space
from vpmu_emu.linux.time import sysvec_apic_timer_interrupt
from vpmu_emu.linux.trace_kinds import TR_HOST_IRQ, TR_INJECT_NMI
from vpmu_emu.machine import msr_index
from vpmu_emu.machine import state as machine
from vpmu_emu.machine.lapic import (
    lapic_ack,
    lapic_pending,
    lapic_timer_expire,
)
from vpmu_emu.machine.pmu import pmi_served, pmi_taken
from vpmu_emu.machine.processor_flags import X86_EFLAGS_IF
from vpmu_emu.machine.ring import emit
from vpmu_emu.machine.u64 import ONE, U64, ZERO
from vpmu_emu.machine.vectors import VECTOR_BP, VECTOR_DB
from vpmu_emu.machine.vmcs import vmptrld

COST_IOCTL = cost("kvm_vcpu_ioctl")
COST_INJECT = cost("inject_event")
COST_IRQ_ENTRY = cost("irq_entry")
COST_VPMI = cost("sysvec_perf_guest_mediated_pmi_handler")
COST_HALT = cost("kvm_vcpu_halt")



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
    guest_space(S, vcpu, kvm_read_cr3(M, vcpu))
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
        account_pmi(S, pmi_taken(core, machine.PMI_FIXED), ZERO)
        printk(S, LOG_SPURIOUS_VECTOR, U64(vector))
    elif vector == KVM_VPMU_VECTOR:
        # A PMI with this vector belongs to the guest, even if it comes late.
        host.vpmi_irqs += ONE
        if host.vcpu >= 0:  # the local APIC has masked it (SDM 3A 11.5.1)
            S.vcpus[host.vcpu].pmu.lvtpc_masked = msr_index.APIC_LVT_MASKED
        retire_work(S, E, COST_VPMI)
        guests = ZERO if lacks(S, patches.HANDLER) else vcpu_bit(host.vcpu)
        account_pmi(S, pmi_taken(core, machine.PMI_FIXED), guests)
        if host.vcpu < 0:
            printk_once(S, LOG_STRAY_PMI, ZERO)
        elif not lacks(S, patches.HANDLER):
            kvm_make_request(S, E, S.vcpus[host.vcpu], state.KVM_REQ_PMI)
            pmi_served(core, guests)
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
    if vcpu.exception >= 0 or vcpu.requests & state.KVM_REQ_NMI != ZERO:
        return True
    if vcpu.pv_unhalted != 0:
        return True
    if vcpu.nmi_pending > 0 and not vmx_nmi_blocked(M, vcpu):
        return True
    return not vmx_interrupt_blocked(M, vcpu) and lapic_pending(this_core(S).vapic) >= 0


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
        real_mode = vmx_get_efer(M, vcpu) == ZERO and vcpu.mp_state == state.MP_STATE_RUNNABLE
        if vcpu.user_exit < 0 and real_mode:
            exit_for_real_mode(S, M, vcpu)
        if vcpu.user_exit >= 0:
            return machine.RUN_USER
    if vcpu.mp_state == state.MP_STATE_RUNNABLE:
        return 0
    uninitialized = (
        vcpu.mp_state == state.MP_STATE_UNINITIALIZED or vcpu.mp_state == state.MP_STATE_INIT_RECEIVED
    )
    if uninitialized and signal_pending(S, vcpu):
        exit_for_signal(M, vcpu)
        return machine.RUN_USER
    if uninitialized:
        task.state = state.TASK_INTERRUPTIBLE
        task.wake_at = machine.NEVER
        return machine.RUN_RESCHED
    kvm_lapic_expired_hv_timer(S, E, vcpu)
    if kvm_vcpu_has_events(S, M, vcpu) or vcpu.requests & state.KVM_REQ_PMI != ZERO:
        vcpu.mp_state = state.MP_STATE_RUNNABLE
        vcpu.pv_unhalted = 0
        return 0
    if signal_pending(S, vcpu):  # kvm_vcpu_check_block(); it is still halted
        vcpu.mp_state = state.MP_STATE_HALTED
        exit_for_signal(M, vcpu)
        return machine.RUN_USER
    if vcpu.mp_state == state.MP_STATE_HALTED:
        vcpu.mp_state = state.MP_STATE_ASLEEP
        charge(S, E, COST_HALT)
    task.state = state.TASK_INTERRUPTIBLE
    # Its own timer can wake it only with interrupts on.
    task.wake_at = machine.NEVER
    if kvm_get_rflags(M, vcpu) & X86_EFLAGS_IF != ZERO:
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
    vcpu.entry_intr_info = ZERO
    vector = -1
    if S.config.apicv == 0:
        vector = lapic_pending(core.vapic)
    if vcpu.exception >= 0:
        if vcpu.exception == VECTOR_DB:
            kvm_deliver_exception_payload(M, vcpu)
        vmx_inject_exception(M, vcpu, vcpu.exception == VECTOR_BP)  # kvm_exception_is_soft()
        vcpu.exception = -1
    elif vcpu.nmi_injected != 0:
        vcpu.nmi_injected = 0
        vmx_inject_nmi(M, vcpu)
    elif vcpu.interrupt >= 0 and not vmx_interrupt_blocked(M, vcpu):
        vmx_inject_irq(M, vcpu, vcpu.interrupt)
        vcpu.interrupt = -1
    elif vcpu.nmi_pending > 0 and not vmx_nmi_blocked(M, vcpu):
        vcpu.nmi_pending -= 1
        vmx_inject_nmi(M, vcpu)
        emit(E, core.t, TR_INJECT_NMI, ZERO, U64(vcpu.nmi_pending), ZERO, ZERO)
    elif vector >= 0 and not vmx_interrupt_blocked(M, vcpu):
        lapic_ack(core.vapic, vector)
        vmx_inject_irq(M, vcpu, vector)
        vector = lapic_pending(core.vapic)
    waits = vector >= 0 or vcpu.interrupt >= 0 or dm_request_for_irq_injection(S, M, vcpu)
    vmx_enable_windows(M, vcpu, vcpu.nmi_pending > 0, waits)
    if vcpu.entry_intr_info != ZERO:
        charge(S, E, COST_INJECT)
    if vcpu.guest_debug & KVM_GUESTDBG_SINGLESTEP != ZERO:
        # vmx_vcpu_run(): an entry with TF and a shadow would ask for BS among the pending exceptions.
        vmx_set_interrupt_shadow(M, vcpu, ZERO)


@jit()
def send_ipi(S, E, vcpu):
    """What the exit that was just handled has put into the ICR goes out."""
    if this_core(S).vapic.ipi_out != 0:
        kvm_irq_delivery_to_apic(S, E, vcpu)
