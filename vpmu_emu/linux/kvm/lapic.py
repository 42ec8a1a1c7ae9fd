"""The virtual local APIC: register accesses that exit, and a timer that is the VMX preemption timer.

The registers themselves are `core.vapic`, which hardware also uses when APICv is on.
arch/x86/kvm/lapic.c, vmx/vmx.c.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.linux.charge import charge
from vpmu_emu.linux.kvm.nmi import kvm_inject_nmi
from vpmu_emu.linux.kvm.vmx.registers import vmx_get_l1_tsc_offset
from vpmu_emu.linux.native import cost
from vpmu_emu.linux.overflow_handler import kvm_make_request
from vpmu_emu.linux.percpu import this_core
from vpmu_emu.linux.state import APIC_INIT, KVM_REQ_EVENT
from vpmu_emu.machine import msr_index
from vpmu_emu.machine.lapic import (
    APIC_BASE_MSR,
    INIT_TO_SELF,
    LVT_NMI,
    NMI_TO_SELF,
    WRITE_FAULT,
    lapic_read,
    lapic_reset,
    lapic_set_deadline,
    lapic_timer_expire,
    lapic_write,
)
from vpmu_emu.machine.memory import tlb_flush
from vpmu_emu.machine.physical import st8
from vpmu_emu.machine.ring import GP_NOT_X2APIC, GP_RESERVED, GP_VALUE
from vpmu_emu.machine.state import STOP_RESET
from vpmu_emu.machine.u64 import BYTE, U64, ZERO
from vpmu_emu.machine.vmx import BITMAP_WRITE
from vpmu_emu.tables.passed import VPMUS, Met, passed_msrs

COST_REG_WRITE = cost("kvm_lapic_reg_write")
COST_REG_READ = cost("kvm_lapic_reg_read")

_FIRST_BYTE = int(APIC_BASE_MSR) // 8


def _exiting(kind: int) -> np.ndarray:
    """Bytes of the MSR bitmap for the APIC's registers, reads (0) or writes (1): a 1 exits."""
    passing = {index for index, *both in passed_msrs(VPMUS[0], Met(x2apicv=True)) if both[kind]}
    exits = [[int(APIC_BASE_MSR) + 8 * k + n not in passing for n in range(8)] for k in range(32)]
    return np.array([sum(bit << n for n, bit in enumerate(byte)) for byte in exits], dtype=np.uint64)


_READS_EXIT, _WRITES_EXIT = _exiting(0), _exiting(1)


@jit()
def vmx_update_msr_bitmap_x2apic(S, M, vcpu):
    """With APICv and x2APIC mode pass what isa/msrs.toml says (reads but of TMCCT, and a few writes)."""
    bitmap = vcpu.msr_bitmap
    passing = S.config.apicv != 0 and this_core(S).vapic.apic_base & msr_index.X2APIC_ENABLE != ZERO
    for k in range(32):
        at = U64(bitmap + _FIRST_BYTE + k)
        st8(M, at, _READS_EXIT[k] if passing else BYTE)
        st8(M, at + BITMAP_WRITE, _WRITES_EXIT[k] if passing else BYTE)


@jit()
def kvm_set_apic_base(S, M, vcpu, value):
    """WRMSR to IA32_APIC_BASE by the guest; GP_VALUE for a transition that is not allowed."""
    vapic = this_core(S).vapic
    old = vapic.apic_base & (msr_index.MSR_IA32_APICBASE_ENABLE | msr_index.X2APIC_ENABLE)
    new = value & (msr_index.MSR_IA32_APICBASE_ENABLE | msr_index.X2APIC_ENABLE)
    if new == msr_index.X2APIC_ENABLE:
        return GP_VALUE
    if old != new:
        # SDM 3A 11.12.5: x2APIC is left only by disabling and not entered from there
        if new == msr_index.MSR_IA32_APICBASE_ENABLE and old & msr_index.X2APIC_ENABLE != ZERO:
            return GP_VALUE
        if (
            new == msr_index.MSR_IA32_APICBASE_ENABLE | msr_index.X2APIC_ENABLE
            and old & msr_index.MSR_IA32_APICBASE_ENABLE == ZERO
        ):
            return GP_VALUE
        if new == ZERO:
            lapic_reset(vapic, vapic.id)
    vapic.apic_base = value
    tlb_flush(this_core(S), 1)
    vmx_update_msr_bitmap_x2apic(S, M, vcpu)
    return 0


@jit()
def kvm_x2apic_msr_write(S, E, vcpu, index, value):
    """An x2APIC register written through an exit; GP_* for #GP."""
    core = this_core(S)
    if core.vapic.apic_base & msr_index.X2APIC_ENABLE == ZERO:
        return GP_NOT_X2APIC
    charge(S, E, COST_REG_WRITE)
    done = lapic_write(core, core.vapic, index, value)
    if done == WRITE_FAULT:
        return GP_RESERVED
    kvm_apic_note_ipi(S, vcpu, done)
    return 0


@jit()
def kvm_apic_note_ipi(S, vcpu, effect):
    """What the guest's APIC did to its own vCPU: __apic_accept_irq() of an NMI or INIT."""
    if effect == NMI_TO_SELF:
        kvm_inject_nmi(vcpu)
    elif effect == INIT_TO_SELF and (
        vcpu.vm != 0 or vcpu.vcpu_id != S.vms[0].bsp_vcpu_id
    ):
        vcpu.apic_events = APIC_INIT
    elif effect == INIT_TO_SELF:
        this_core(S).stop = STOP_RESET  # the VMM has no firmware to start


@jit()
def kvm_x2apic_msr_read(S, E, index):
    """An x2APIC register read through an exit, in x2APIC mode."""
    core = this_core(S)
    charge(S, E, COST_REG_READ)
    return lapic_read(core, core.vapic, index)


@jit()
def kvm_set_lapic_tscdeadline_msr(S, M, vcpu, data):
    """The guest's TSC deadline, in the guest's TSC; the hypervisor timer follows at the next entry."""
    core = this_core(S)
    lapic_set_deadline(core, core.vapic, data, vmx_get_l1_tsc_offset(M, vcpu) + core.tsc_adjust)


@jit()
def kvm_lapic_expired_hv_timer(S, E, vcpu):
    """The guest's timer has run out: deliver it through the virtual LVTT."""
    core = this_core(S)
    if core.t < core.vapic.timer_at:
        return
    sent = lapic_timer_expire(core, core.vapic)
    if sent == LVT_NMI:
        kvm_inject_nmi(vcpu)
    if sent == LVT_NMI or (sent != 0 and S.config.apicv == 0):
        kvm_make_request(S, E, vcpu, KVM_REQ_EVENT)  # needs injection by software
