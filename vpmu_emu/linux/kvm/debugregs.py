"""Debug registers of a guest, or in their place those that its VMM asked for: arch/x86/kvm/x86.c.

They are in the processor only while they are of use: after a guest's first access, until the next exit
(KVM_DEBUGREG_WONT_EXIT), and while a breakpoint is on (KVM_DEBUGREG_BP_ENABLED). DR7 is the VMCS's.
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.linux.kvm.run import exit_for_debug
from vpmu_emu.linux.kvm.vmx.registers import (
    kvm_get_rflags,
    kvm_rip_read,
    vmx_get_dr7,
    vmx_set_dr7,
)
from vpmu_emu.linux.percpu import this_core
from vpmu_emu.machine import breakpoints
from vpmu_emu.machine.breakpoints import set_dr
from vpmu_emu.machine.processor_flags import X86_EFLAGS_RF
from vpmu_emu.machine.state import N_DR
from vpmu_emu.machine.u64 import LOW32, ONE, U2, U3, U15, U64, ZERO
from vpmu_emu.machine.vectors import VECTOR_DB
from vpmu_emu.tables.linux import constant

KVM_DEBUGREG_BP_ENABLED, KVM_DEBUGREG_WONT_EXIT = ONE, U2
KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_SW_BP, KVM_GUESTDBG_USE_HW_BP = (
    U64(constant(f"KVM_GUESTDBG_{name}"))
    for name in ("ENABLE", "SINGLESTEP", "USE_SW_BP", "USE_HW_BP")
)
DR7_VOLATILE = U64(0xFFFF_2BFF)
_FIRST_TYPE = U64(16)


# --- the registers as KVM keeps them ------------------------------------------------------------------
@jit()
def kvm_update_dr0123(vcpu):
    """The addresses that count are the guest's, unless its VMM has breakpoints of its own."""
    if vcpu.guest_debug & KVM_GUESTDBG_USE_HW_BP == ZERO:
        for i in range(N_DR):
            vcpu.eff_db[i] = vcpu.db[i]


@jit()
def kvm_update_dr7(M, vcpu):
    """DR7 of the next entry. Modifies vcpu and its VMCS."""
    dr7 = vcpu.dr7
    if vcpu.guest_debug & KVM_GUESTDBG_USE_HW_BP != ZERO:
        dr7 = vcpu.guest_debug_dr7
    vmx_set_dr7(M, vcpu, dr7)
    vcpu.switch_db_regs &= ~KVM_DEBUGREG_BP_ENABLED
    if dr7 & breakpoints.DR7_ENABLED != ZERO:
        vcpu.switch_db_regs |= KVM_DEBUGREG_BP_ENABLED


@jit()
def reset_debug_registers(M, vcpu):
    """RESET and INIT (kvm_vcpu_reset)."""
    for i in range(N_DR):
        vcpu.db[i] = ZERO
    vcpu.dr6 = breakpoints.DR6_RESET
    vcpu.dr7 = breakpoints.DR7_RESET
    kvm_update_dr0123(vcpu)
    kvm_update_dr7(M, vcpu)


@jit()
def load_debug_registers(S, vcpu):
    """vcpu_enter_guest(), before the inner loop: into the processor, if they are of use."""
    core = this_core(S)
    if vcpu.switch_db_regs == ZERO:
        return
    for i in range(N_DR):
        set_dr(core, i, vcpu.eff_db[i])
    if vcpu.switch_db_regs & KVM_DEBUGREG_WONT_EXIT != ZERO:
        set_dr(core, 6, vcpu.dr6)


# --- #DB ----------------------------------------------------------------------------------------------
@jit()
def kvm_queue_db(vcpu, payload):
    """kvm_queue_exception_p(DB_VECTOR): DR6 learns of `payload` when the exception is injected."""
    vcpu.exception = VECTOR_DB
    vcpu.exception_pending = 1
    vcpu.exception_has_error = 0
    vcpu.exception_error = ZERO
    vcpu.exception_has_payload = 1
    vcpu.exception_payload = payload


@jit()
def kvm_deliver_exception_payload(M, vcpu):
    """#DB is injected: DR6 says why, and the debug registers can be had again."""
    if vcpu.exception_has_payload != 0:
        vcpu.dr6 = (vcpu.dr6 & ~breakpoints.DR6_TRAPS) | breakpoints.DR6_RESET | vcpu.exception_payload
        vcpu.exception_has_payload = 0
        vcpu.exception_payload = ZERO
    if vcpu.dr7 & breakpoints.DR7_GD != ZERO:
        vcpu.dr7 &= ~breakpoints.DR7_GD
        kvm_update_dr7(M, vcpu)


@jit()
def debug_exit(S, M, vcpu, vector, dr6):
    """KVM_EXIT_DEBUG: what the VMM asked for has happened."""
    pc, dr7 = kvm_rip_read(M, vcpu), vmx_get_dr7(M, vcpu)
    exit_for_debug(S, M, vcpu, vector, pc, dr6 | breakpoints.DR6_RESET, dr7)


@jit()
def kvm_vcpu_do_singlestep(S, M, vcpu):
    """An instruction that began with TF set has been emulated."""
    if vcpu.guest_debug & KVM_GUESTDBG_SINGLESTEP != ZERO:
        debug_exit(S, M, vcpu, VECTOR_DB, breakpoints.DR6_BS)
    else:
        kvm_queue_db(vcpu, breakpoints.DR6_BS)


# --- breakpoints on what KVM emulates -----------------------------------------------------------------
@jit()
def _check_hw_bp(addresses, dr7, at):
    hits = ZERO
    for i in range(N_DR):
        on = (dr7 >> U64(2 * i)) & U3 != ZERO
        if on and (dr7 >> (_FIRST_TYPE + U64(4 * i))) & U15 == ZERO and addresses[i] == at:
            hits |= ONE << U64(i)
    return hits


@jit()
def kvm_vcpu_check_code_breakpoint(S, M, vcpu):
    """Whether a breakpoint lies on the instruction to emulate; its #DB is then on its way."""
    at = kvm_rip_read(M, vcpu)
    if vcpu.guest_debug & KVM_GUESTDBG_USE_HW_BP != ZERO:
        hits = _check_hw_bp(vcpu.eff_db, vcpu.guest_debug_dr7, at)
        if hits != ZERO:
            debug_exit(S, M, vcpu, VECTOR_DB, hits)
            return True
    resumes = kvm_get_rflags(M, vcpu) & X86_EFLAGS_RF != ZERO
    if vcpu.dr7 & breakpoints.DR7_ENABLED != ZERO and not resumes:
        hits = _check_hw_bp(vcpu.db, vcpu.dr7, at)
        if hits != ZERO:
            kvm_queue_db(vcpu, hits)
            return True
    return False


# --- MOV DR -------------------------------------------------------------------------------------------
@jit()
def kvm_get_dr(vcpu, dr):
    """DR`dr`, 0 to 7."""
    if dr < N_DR:
        return vcpu.db[dr]
    return vcpu.dr6 if dr == 4 or dr == 6 else vcpu.dr7


@jit()
def kvm_set_dr(M, vcpu, dr, value):
    """Set DR`dr`, 0 to 7; False: #GP. Modifies vcpu and its VMCS."""
    if dr < N_DR:
        vcpu.db[dr] = value
        kvm_update_dr0123(vcpu)
        return True
    if value > LOW32:
        return False
    if dr == 4 or dr == 6:
        vcpu.dr6 = (value & breakpoints.DR6_WRITABLE) | breakpoints.DR6_RESET
    else:
        vcpu.dr7 = (value & DR7_VOLATILE) | breakpoints.DR7_RESET
        kvm_update_dr7(M, vcpu)
    return True
