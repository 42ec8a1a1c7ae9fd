"""The exits that debugging brings, #DB, #BP and MOV DR, and the registers behind the inner loop.

arch/x86/kvm/vmx/vmx.c.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.linux.charge import charge
from vpmu_emu.linux.kvm.debugregs import (
    KVM_DEBUGREG_WONT_EXIT,
    KVM_GUESTDBG_ENABLE,
    KVM_GUESTDBG_SINGLESTEP,
    KVM_GUESTDBG_USE_HW_BP,
    KVM_GUESTDBG_USE_SW_BP,
    debug_exit,
    kvm_get_dr,
    kvm_queue_db,
    kvm_set_dr,
    kvm_update_dr0123,
    kvm_update_dr7,
)
from vpmu_emu.linux.kvm.vmx.registers import (
    kvm_get_rflags,
    kvm_rsp_write,
    vmx_add_pending_debug,
    vmx_exit_instruction_length,
    vmx_exit_reason,
    vmx_get_dr7,
    vmx_get_interrupt_shadow,
    vmx_set_dr_intercepts,
    vmx_set_exception_bitmap,
)
from vpmu_emu.linux.native import cost
from vpmu_emu.linux.percpu import this_core
from vpmu_emu.machine import breakpoints, vmcs
from vpmu_emu.machine.breakpoints import get_dr, set_dr
from vpmu_emu.machine.processor_flags import X86_EFLAGS_TF
from vpmu_emu.machine.state import N_DR, RSP
from vpmu_emu.machine.u64 import ONE, U8, U15, U64, ZERO
from vpmu_emu.machine.vectors import VECTOR_BP, VECTOR_DB, VECTOR_UD

COST_DR = cost("handle_dr")
# What exits whoever debugs. A #DB that meets a breakpoint on its own frame would never end (CVE-2015-8104).
EXCEPTIONS = U64(1 << VECTOR_DB | 1 << VECTOR_UD)
_TYPE_MOV_FROM_DR = U64(1 << 4)
_NUMBER = U64(7)


@jit()
def vmx_sync_dirty_debug_regs(S, M, vcpu):
    """Behind the inner loop: what the guest wrote while it had them. The next access exits again."""
    core = this_core(S)
    if vcpu.switch_db_regs & KVM_DEBUGREG_WONT_EXIT == ZERO:
        return
    for i in range(N_DR):
        vcpu.db[i] = get_dr(core, i)
    vcpu.dr6 = get_dr(core, 6)
    vcpu.dr7 = vmx_get_dr7(M, vcpu)
    vcpu.switch_db_regs &= ~KVM_DEBUGREG_WONT_EXIT
    vmx_set_dr_intercepts(M, vcpu, True)
    kvm_update_dr0123(vcpu)
    kvm_update_dr7(M, vcpu)
    set_dr(core, 6, ZERO)  # the host's #DB handler is to find nothing of the guest


@jit()
def handle_db(S, M, vcpu):
    """handle_exception_nmi() for #DB: the VMM's, or the guest's own."""
    core = this_core(S)
    why = core.vmx.exit_qual
    if vcpu.guest_debug & (KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_USE_HW_BP) != ZERO:
        vcpu.event_exit_inst_len = vmx_exit_instruction_length(M, vcpu)
        debug_exit(S, M, vcpu, VECTOR_DB, why)
        return
    shadowed = vmx_get_interrupt_shadow(M, vcpu) != ZERO
    if shadowed and kvm_get_rflags(M, vcpu) & X86_EFLAGS_TF != ZERO:
        vmx_add_pending_debug(M, vcpu, breakpoints.DR6_BS)
    kvm_queue_db(vcpu, why)


@jit()
def handle_bp(S, M, vcpu):
    """handle_exception_nmi() for #BP, which exits for the VMM's breakpoints only."""
    vcpu.event_exit_inst_len = vmx_exit_instruction_length(M, vcpu)
    debug_exit(S, M, vcpu, VECTOR_BP, ZERO)


@jit()
def vmx_update_exception_bitmap(M, vcpu):
    """Which exceptions of the guest exit: #BP only for the VMM's breakpoints."""
    eb = EXCEPTIONS
    wanted = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP
    if vcpu.guest_debug & wanted == wanted:
        eb |= ONE << U64(VECTOR_BP)
    vmx_set_exception_bitmap(M, vcpu, eb)


@jit()
def handle_dr(S, M, E, vcpu):
    """MOV DR: 1 the instruction is done, 0 it is not, -1 it is #GP.

    The first one only has the registers loaded: then the guest does it itself. What the emulator met, and
    with a debugging VMM every one, is done here.
    """
    core = this_core(S)
    charge(S, E, COST_DR)
    qualification = core.vmx.exit_qual
    dr = np.int64(qualification & _NUMBER)
    if vmx_get_dr7(M, vcpu) & breakpoints.DR7_GD != ZERO:
        # The exit takes precedence over the debug trap.
        if vcpu.guest_debug & KVM_GUESTDBG_USE_HW_BP != ZERO:
            debug_exit(S, M, vcpu, VECTOR_DB, breakpoints.DR6_BD)
        else:
            kvm_queue_db(vcpu, breakpoints.DR6_BD)
        return 0
    if vcpu.guest_debug == ZERO and vmx_exit_reason(M, vcpu) == vmcs.EXIT_DR_ACCESS:
        vmx_set_dr_intercepts(M, vcpu, False)
        vcpu.switch_db_regs |= KVM_DEBUGREG_WONT_EXIT
        return 0
    reg = np.int64((qualification >> U8) & U15)
    if qualification & _TYPE_MOV_FROM_DR == ZERO:
        return 1 if kvm_set_dr(M, vcpu, dr, core.regs[reg]) else -1
    core.regs[reg] = kvm_get_dr(vcpu, dr)
    if reg == RSP:
        kvm_rsp_write(M, vcpu, core.regs[RSP])
    return 1
