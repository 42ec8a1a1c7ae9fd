"""A message of one vCPU reaches the others of its VM wherever they are: in a guest, waiting, asleep.

arch/x86/kvm/irq.c, lapic.c: kvm_irq_delivery_to_apic(), __apic_accept_irq(), kvm_vcpu_kick().
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.linux.hrtimer import host_timer_program
from vpmu_emu.linux.kvm.debugregs import reset_debug_registers
from vpmu_emu.linux.kvm.nmi import kvm_inject_nmi
from vpmu_emu.linux.kvm.vm import CR0_REAL_MODE, CS_RESET, RIP_RESET
from vpmu_emu.linux.sched import RESCHEDULE_VECTOR, end_turn, wake_up_task
from vpmu_emu.linux.state import (
    APIC_INIT,
    APIC_SIPI,
    KVM_REQ_EVENT,
    MP_STATE_INIT_RECEIVED,
    MP_STATE_RUNNABLE,
    N_VCPUS,
    USER_IO_NONE,
)
from vpmu_emu.machine.engine import CR0_RESET, CR4_RESET, EFER_RESET
from vpmu_emu.machine.interrupts import RFLAGS_FIXED
from vpmu_emu.machine.lapic import (
    BASE_ENABLE,
    DELIVERY_MODE,
    MODE_FIXED,
    MODE_INIT,
    MODE_LOWEST,
    MODE_NMI,
    MODE_SIPI,
    SHORTHAND,
    SHORTHAND_NONE,
    SPIV_ENABLE,
    is_deassert,
    is_destination,
    lapic_accept,
    lapic_reset,
)
from vpmu_emu.machine.physical import st64
from vpmu_emu.machine.state import N_REGS
from vpmu_emu.machine.u64 import BYTE, U8, U12, U64, WORD, ZERO
from vpmu_emu.machine.vmcs import (
    V_ACTIVITY,
    V_CR0,
    V_CR0_SHADOW,
    V_CR3,
    V_CR4,
    V_CR4_SHADOW,
    V_EFER,
    V_ES,
    V_FS_BASE,
    V_GDTR_BASE,
    V_GDTR_LIMIT,
    V_GS_BASE,
    V_IDTR_BASE,
    V_IDTR_LIMIT,
    V_INTERRUPTIBILITY,
    V_RFLAGS,
    V_RIP,
    V_RSP,
    V_SS_AR,
)

V_CS = V_ES + 8
CLEARED = np.array(
    [
        V_RSP, V_CR3, V_CR4, V_CR4_SHADOW, V_EFER, V_SS_AR, V_GDTR_BASE, V_IDTR_BASE, V_FS_BASE, V_GS_BASE,
        V_INTERRUPTIBILITY, V_ACTIVITY, *(V_ES + 8 * n for n in range(6)),
    ],
    dtype=np.int64,
)  # fmt: skip
"""Fields that INIT clears."""


@jit()
def kvm_vcpu_kick(S, E, k):
    """Have vCPU k look at its requests: wake its thread, or interrupt the core that it runs on."""
    vcpu = S.vcpus[k]
    if vcpu.task < 0:
        return
    wake_up_task(S, vcpu.task)
    host_timer_program(S, E)
    cpu = S.tasks[vcpu.task].on_cpu
    if cpu >= 0 and cpu != S.this_cpu:
        lapic_accept(S.cores[cpu].lapic, RESCHEDULE_VECTOR)
        end_turn(S)


@jit()
def _vmwrite(S, M, k, field, value):
    st64(M, U64(S.vcpus[k].vmcs + field), value)


@jit()
def kvm_vcpu_reset(S, M, k):
    """INIT of vCPU k, which no core has loaded: its PMU and its APIC's mode stay as they are."""
    vcpu = S.vcpus[k]
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
    vcpu.complete = USER_IO_NONE
    vcpu.mmio_reads = 0
    vcpu.entry_intr_info = ZERO
    vcpu.cr2 = ZERO
    vcpu.sysenter_cs = ZERO
    vcpu.sysenter_esp = ZERO
    vcpu.sysenter_eip = ZERO
    for i in range(N_REGS):
        vcpu.regs[i] = ZERO
    for n in range(len(CLEARED)):
        _vmwrite(S, M, k, CLEARED[n], ZERO)
    _vmwrite(S, M, k, V_RIP, U64(RIP_RESET))
    _vmwrite(S, M, k, V_CS, U64(CS_RESET))
    _vmwrite(S, M, k, V_RFLAGS, RFLAGS_FIXED)
    _vmwrite(S, M, k, V_CR0, U64(CR0_REAL_MODE))
    _vmwrite(S, M, k, V_CR0_SHADOW, U64(CR0_REAL_MODE))
    _vmwrite(S, M, k, V_GDTR_LIMIT, WORD)
    _vmwrite(S, M, k, V_IDTR_LIMIT, WORD)


@jit()
def _deliver_sipi_vector(S, M, k):
    # Real mode being outside of the subset, the vCPU starts in 64-bit mode, at its page.
    page = U64(S.vcpus[k].sipi_vector)
    _vmwrite(S, M, k, V_CS, page << U8)
    _vmwrite(S, M, k, V_RIP, page << U12)
    _vmwrite(S, M, k, V_CR0, CR0_RESET)
    _vmwrite(S, M, k, V_CR0_SHADOW, CR0_RESET)
    _vmwrite(S, M, k, V_CR4, CR4_RESET)
    _vmwrite(S, M, k, V_CR4_SHADOW, CR4_RESET)
    _vmwrite(S, M, k, V_EFER, EFER_RESET)


@jit()
def _is_bsp(S, k):
    # kvm_vcpu_is_reset_bsp()
    return S.vcpus[k].vcpu_id == S.vms[S.vcpus[k].vm].bsp_vcpu_id


@jit()
def kvm_apic_accept_events(S, M, k):
    """The INIT and the startup message that have come for vCPU k, which no core has loaded."""
    vcpu = S.vcpus[k]
    events = vcpu.apic_events
    vcpu.apic_events = 0
    if events & APIC_INIT != 0:
        kvm_vcpu_reset(S, M, k)
        # kvm_vcpu_is_bsp(): the first one goes on at once, in the firmware.
        vcpu.mp_state = MP_STATE_RUNNABLE if _is_bsp(S, k) else MP_STATE_INIT_RECEIVED
    if events & APIC_SIPI != 0 and vcpu.mp_state == MP_STATE_INIT_RECEIVED:
        _deliver_sipi_vector(S, M, k)
        vcpu.mp_state = MP_STATE_RUNNABLE


@jit()
def kvm_apic_set_irq(S, E, k, icr):
    """__apic_accept_irq(): vCPU k gets a message, whatever its destination; 1 if it takes it."""
    vcpu = S.vcpus[k]
    mode = icr & DELIVERY_MODE
    taken = 1
    if mode == MODE_INIT:
        if is_deassert(icr):
            return 0
        vcpu.apic_events = APIC_INIT  # a startup message before it is forgotten
    elif mode == MODE_SIPI:
        vcpu.sipi_vector = np.int64(icr & BYTE)
        vcpu.apic_events |= APIC_SIPI
    elif mode == MODE_NMI:
        kvm_inject_nmi(vcpu)
    elif mode == MODE_FIXED or mode == MODE_LOWEST:
        # Loaded somewhere, the registers that count are in that core.
        if vcpu.cpu >= 0 and S.percpu[vcpu.cpu].vcpu == k:
            vapic = S.cores[vcpu.cpu].vapic
        else:
            vapic = vcpu.vapic
        lapic_accept(vapic, icr & BYTE)
        if vapic.spiv & SPIV_ENABLE == ZERO or vapic.apic_base & BASE_ENABLE == ZERO:
            taken = 0
    else:
        return 0
    vcpu.requests |= KVM_REQ_EVENT
    kvm_vcpu_kick(S, E, k)
    return taken


@jit()
def kvm_irq_delivery_to_apic(S, E):
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
            kvm_apic_set_irq(S, E, k, icr)
            if lowest:
                return
