"""A message of one vCPU reaches the others of its VM wherever they are: in a guest, waiting, asleep.

arch/x86/kvm/irq.c, lapic.c: kvm_irq_delivery_to_apic(), __apic_accept_irq(), kvm_vcpu_kick().
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.linux.sched import resched_cpu, wake_up_task
from vpmu_emu.linux.state import KVM_REQ_EVENT, MP_STATE_RUNNABLE, MP_STATE_WAIT_FOR_SIPI, N_VCPUS
from vpmu_emu.machine.engine import CR0_RESET, CR4_RESET, EFER_RESET
from vpmu_emu.machine.interrupts import RFLAGS_FIXED
from vpmu_emu.machine.lapic import (
    DELIVERY_MODE,
    MODE_FIXED,
    MODE_INIT,
    MODE_LOWEST,
    MODE_NMI,
    MODE_SIPI,
    SHORTHAND,
    SHORTHAND_NONE,
    is_deassert,
    is_destination,
    lapic_accept,
)
from vpmu_emu.machine.physical import st64
from vpmu_emu.machine.state import N_REGS
from vpmu_emu.machine.u64 import BYTE, U12, U64, ZERO
from vpmu_emu.machine.vmx import (
    V_ACTIVITY,
    V_CR0,
    V_CR3,
    V_CR4,
    V_EFER,
    V_IDTR_LIMIT,
    V_INTERRUPTIBILITY,
    V_RFLAGS,
    V_RIP,
    V_RSP,
    V_SS_AR,
)

NMI_LIMIT = 2


@jit()
def kvm_vcpu_kick(S, k):
    """Have vCPU k look at its requests: wake its thread, or interrupt the core that it runs on."""
    vcpu = S.vcpus[k]
    if vcpu.task < 0:
        return
    wake_up_task(S, vcpu.task)
    task = S.tasks[vcpu.task]
    if task.on_cpu >= 0 and task.on_cpu != S.this_cpu:
        resched_cpu(S, task.on_cpu)


@jit()
def _vmwrite(S, M, k, field, value):
    st64(M, U64(S.vcpus[k].vmcs + field), value)


@jit()
def _start(S, M, k, page):
    # A startup message; real mode being outside of the subset, 64-bit code at its page.
    vcpu = S.vcpus[k]
    for i in range(N_REGS):
        vcpu.regs[i] = ZERO
    _vmwrite(S, M, k, V_RIP, page << U12)
    _vmwrite(S, M, k, V_RSP, ZERO)
    _vmwrite(S, M, k, V_RFLAGS, RFLAGS_FIXED)
    _vmwrite(S, M, k, V_CR0, CR0_RESET)
    _vmwrite(S, M, k, V_CR3, ZERO)
    _vmwrite(S, M, k, V_CR4, CR4_RESET)
    _vmwrite(S, M, k, V_EFER, EFER_RESET)
    _vmwrite(S, M, k, V_SS_AR, ZERO)
    _vmwrite(S, M, k, V_IDTR_LIMIT, ZERO)
    _vmwrite(S, M, k, V_INTERRUPTIBILITY, ZERO)
    _vmwrite(S, M, k, V_ACTIVITY, ZERO)
    vcpu.mp_state = MP_STATE_RUNNABLE


@jit()
def _accept(S, M, k, vapic, icr):
    vcpu = S.vcpus[k]
    mode = icr & DELIVERY_MODE
    if mode == MODE_INIT:
        # Only one that does not run yet: INIT of a vCPU at work is not modelled.
        if not is_deassert(icr) and vcpu.entries == ZERO:
            vcpu.mp_state = MP_STATE_WAIT_FOR_SIPI
        return
    if mode == MODE_SIPI:
        if vcpu.mp_state != MP_STATE_WAIT_FOR_SIPI:
            return
        _start(S, M, k, icr & BYTE)
    elif vcpu.mp_state == MP_STATE_WAIT_FOR_SIPI:
        return
    elif mode == MODE_NMI:
        vcpu.nmi_pending = min(vcpu.nmi_pending + 1, NMI_LIMIT)
        vcpu.requests |= KVM_REQ_EVENT
    elif mode == MODE_FIXED or mode == MODE_LOWEST:
        lapic_accept(vapic, icr & BYTE)
        vcpu.requests |= KVM_REQ_EVENT
    kvm_vcpu_kick(S, k)


@jit()
def kvm_irq_delivery_to_apic(S, M):
    """Deliver the message in the ICR of this vCPU's APIC to the others. Modifies them."""
    source = S.cores[S.this_cpu].vapic
    source.ipi_out = 0
    icr = source.icr
    shorthand = icr & SHORTHAND
    lowest = icr & DELIVERY_MODE == MODE_LOWEST
    if lowest and shorthand == SHORTHAND_NONE and is_destination(source, source, icr):
        return  # one processor takes it, and the sender already has
    for k in range(N_VCPUS):
        vcpu = S.vcpus[k]
        if vcpu.used == 0 or k == S.this_vcpu or vcpu.vm != S.this_vm:
            continue
        # Loaded somewhere, the registers that count are in that core.
        if vcpu.cpu >= 0 and S.percpu[vcpu.cpu].vcpu == k:
            vapic = S.cores[vcpu.cpu].vapic
        else:
            vapic = vcpu.vapic
        if shorthand != SHORTHAND_NONE or is_destination(source, vapic, icr):
            _accept(S, M, k, vapic, icr)
            if lowest:
                return
