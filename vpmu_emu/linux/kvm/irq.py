"""A message of one vCPU reaches the others of its VM wherever they are: in a guest, waiting, asleep.

arch/x86/kvm/irq.c, lapic.c: kvm_irq_delivery_to_apic(), __apic_accept_irq(), kvm_vcpu_kick().
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.linux import state
from vpmu_emu.linux.hrtimer import host_timer_program
from vpmu_emu.linux.irq_vectors import RESCHEDULE_VECTOR
from vpmu_emu.linux.kvm.debugregs import reset_debug_registers
from vpmu_emu.linux.kvm.nmi import kvm_inject_nmi
from vpmu_emu.linux.kvm.vmx.registers import vmx_start_at_page, vmx_vcpu_reset
from vpmu_emu.linux.percpu import this_core
from vpmu_emu.linux.sched import end_turn, wake_up_task
from vpmu_emu.machine import msr_index
from vpmu_emu.machine.lapic import is_deassert, is_destination, lapic_accept, lapic_reset
from vpmu_emu.machine.state import N_REGS
from vpmu_emu.machine.u64 import BYTE, U64, ZERO


@jit()
def kvm_vcpu_kick(S, E, vcpu):
    """Have a vCPU look at its requests: wake its thread, or interrupt the core that it runs on."""
    if vcpu.task < 0:
        return
    wake_up_task(S, vcpu.task)
    host_timer_program(S, E)
    cpu = S.tasks[vcpu.task].on_cpu
    if cpu >= 0 and cpu != S.this_cpu:
        lapic_accept(S.cores[cpu].lapic, U64(RESCHEDULE_VECTOR))
        end_turn(S)


@jit()
def kvm_vcpu_reset(M, vcpu):
    """INIT of a vCPU that no core has loaded: its PMU and its APIC's mode stay as they are."""
    base = vcpu.vapic.apic_base
    lapic_reset(vcpu.vapic, vcpu.vapic.id)
    vcpu.vapic.apic_base = base
    vcpu.nmi_queued = 0
    vcpu.nmi_pending = 0
    vcpu.nmi_injected = 0
    vcpu.exception = -1
    vcpu.interrupt = -1
    vcpu.exception_has_payload = 0
    reset_debug_registers(M, vcpu)
    vcpu.complete = state.USER_IO_NONE
    vcpu.mmio_reads = 0
    vcpu.entry_intr_info = ZERO
    vcpu.cr2 = ZERO
    vcpu.sysenter_cs = ZERO
    vcpu.sysenter_esp = ZERO
    vcpu.sysenter_eip = ZERO
    for i in range(N_REGS):
        vcpu.regs[i] = ZERO
    vmx_vcpu_reset(M, vcpu)


@jit()
def kvm_vcpu_is_reset_bsp(S, vcpu):
    """Whether it is the one that starts without being asked to."""
    return vcpu.vcpu_id == S.vms[vcpu.vm].bsp_vcpu_id


@jit()
def kvm_apic_accept_events(S, M, vcpu):
    """The INIT and the startup message that have come for a vCPU that no core has loaded."""
    events = vcpu.apic_events
    vcpu.apic_events = 0
    if events & state.APIC_INIT != 0:
        kvm_vcpu_reset(M, vcpu)
        # kvm_vcpu_is_bsp(): the first one goes on at once, in the firmware.
        first = kvm_vcpu_is_reset_bsp(S, vcpu)
        vcpu.mp_state = state.MP_STATE_RUNNABLE if first else state.MP_STATE_INIT_RECEIVED
    if events & state.APIC_SIPI != 0 and vcpu.mp_state == state.MP_STATE_INIT_RECEIVED:
        vmx_start_at_page(M, vcpu, U64(vcpu.sipi_vector))  # kvm_vcpu_deliver_sipi_vector()
        vcpu.mp_state = state.MP_STATE_RUNNABLE


@jit()
def vapic_of(S, vcpu):
    """The registers of its APIC: while it is loaded those in its core are the ones that count."""
    if vcpu.cpu >= 0 and S.percpu[vcpu.cpu].vcpu == vcpu.vcpu_idx:
        return S.cores[vcpu.cpu].vapic
    return vcpu.vapic


@jit()
def kvm_apic_set_irq(S, E, vcpu, icr):
    """__apic_accept_irq(): a vCPU gets a message, whatever its destination; 1 if it takes it."""
    mode = icr & msr_index.APIC_MODE_MASK
    taken = 1
    if mode == msr_index.APIC_DM_INIT:
        if is_deassert(icr):
            return 0
        vcpu.apic_events = state.APIC_INIT  # a startup message before it is forgotten
    elif mode == msr_index.APIC_DM_STARTUP:
        vcpu.sipi_vector = np.int64(icr & BYTE)
        vcpu.apic_events |= state.APIC_SIPI
    elif mode == msr_index.APIC_DM_NMI:
        kvm_inject_nmi(vcpu)
    elif mode == msr_index.APIC_DM_FIXED or mode == msr_index.APIC_DM_LOWEST:
        vapic = vapic_of(S, vcpu)
        lapic_accept(vapic, icr & BYTE)
        if (
            vapic.spiv & msr_index.APIC_SPIV_APIC_ENABLED == ZERO
            or vapic.apic_base & msr_index.MSR_IA32_APICBASE_ENABLE == ZERO
        ):
            taken = 0
    else:
        return 0
    vcpu.requests |= state.KVM_REQ_EVENT
    kvm_vcpu_kick(S, E, vcpu)
    return taken


@jit()
def kvm_irq_delivery_to_apic(S, E, vcpu):
    """Deliver the message in the ICR of this vCPU's APIC to the others. Modifies them."""
    source = this_core(S).vapic
    source.ipi_out = 0
    icr = source.icr
    shorthand = icr & msr_index.APIC_SHORT_MASK
    lowest = icr & msr_index.APIC_MODE_MASK == msr_index.APIC_DM_LOWEST
    if lowest and shorthand == msr_index.APIC_DEST_NOSHORT and is_destination(source, source, icr):
        return  # one processor takes it, and the sender already has
    for k in range(state.N_VCPUS):
        other = S.vcpus[k]
        if other.used == 0 or k == vcpu.vcpu_idx or other.vm != vcpu.vm:
            continue
        if shorthand != msr_index.APIC_DEST_NOSHORT or is_destination(source, vapic_of(S, other), icr):
            kvm_apic_set_irq(S, E, other, icr)
            if lowest:
                return
