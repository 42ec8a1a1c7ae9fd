"""The doors to a vCPU's state that Intel keeps in the VMCS: what KVM's common code asks of it and sets.

The VMCS lies in memory whether the vCPU is loaded or not, so each of these works for any vCPU.
arch/x86/kvm/kvm_cache_regs.h, asm/kvm-x86-ops.h, vmx/vmx.c.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.machine import vmcs
from vpmu_emu.machine.engine import CR0_RESET, CR4_RESET, EFER_RESET
from vpmu_emu.machine.physical import ld64, st64
from vpmu_emu.machine.processor_flags import (
    X86_CR0_CD,
    X86_CR0_ET,
    X86_CR0_NW,
    X86_EFLAGS_FIXED,
    X86_EFLAGS_IF,
)
from vpmu_emu.machine.u64 import U3, U8, U12, U64, WORD, ZERO

CR0_REAL_MODE = int(X86_CR0_CD | X86_CR0_NW | X86_CR0_ET)  # RESET
CS_RESET, RIP_RESET = 0xF000, 0xFFF0
SHADOWS = vmcs.STI_BLOCKING | vmcs.MOV_SS_BLOCKING
_AR_DPL = U64(5)
_V_CS = vmcs.V_ES + 8
_CLEARED = np.array(
    [
        vmcs.V_RSP, vmcs.V_CR3, vmcs.V_CR4, vmcs.V_CR4_SHADOW, vmcs.V_EFER, vmcs.V_SS_AR,
        vmcs.V_GDTR_BASE, vmcs.V_IDTR_BASE, vmcs.V_FS_BASE, vmcs.V_GS_BASE,
        vmcs.V_INTERRUPTIBILITY, vmcs.V_ACTIVITY, *(vmcs.V_ES + 8 * n for n in range(6)),
    ],
    dtype=np.int64,
)  # fmt: skip


@jit(inline=True)
def _read(M, vcpu, field):
    return ld64(M, U64(vcpu.vmcs + field))


@jit(inline=True)
def _write(M, vcpu, field, value):
    st64(M, U64(vcpu.vmcs + field), value)


# --- registers ------------------------------------------------------------------------------------------
@jit()
def kvm_rip_read(M, vcpu):
    """RIP."""
    return _read(M, vcpu, vmcs.V_RIP)


@jit()
def kvm_rip_write(M, vcpu, rip):
    """Set RIP."""
    _write(M, vcpu, vmcs.V_RIP, rip)


@jit()
def kvm_rsp_write(M, vcpu, rsp):
    """Set RSP."""
    _write(M, vcpu, vmcs.V_RSP, rsp)


@jit()
def kvm_get_rflags(M, vcpu):
    """RFLAGS."""
    return _read(M, vcpu, vmcs.V_RFLAGS)


@jit()
def kvm_set_rflags(M, vcpu, rflags):
    """Set RFLAGS."""
    _write(M, vcpu, vmcs.V_RFLAGS, rflags)


@jit()
def kvm_read_cr3(M, vcpu):
    """CR3."""
    return _read(M, vcpu, vmcs.V_CR3)


@jit()
def vmx_get_efer(M, vcpu):
    """EFER (vcpu->arch.efer)."""
    return _read(M, vcpu, vmcs.V_EFER)


@jit()
def vmx_get_cpl(M, vcpu):
    """CPL, 0 to 3: the DPL of SS."""
    return np.int64((_read(M, vcpu, vmcs.V_SS_AR) >> _AR_DPL) & U3)


@jit()
def vmx_get_l1_tsc_offset(M, vcpu):
    """What its TSC is ahead of the host's (vcpu->arch.l1_tsc_offset)."""
    return _read(M, vcpu, vmcs.V_TSC_OFFSET)


@jit()
def vmx_get_global_ctrl(M, vcpu):
    """IA32_PERF_GLOBAL_CTRL as VM exit saved it."""
    return _read(M, vcpu, vmcs.V_GUEST_GLOBAL_CTRL)


@jit()
def vmx_set_global_ctrl(M, vcpu, global_ctrl):
    """What VM entry loads into it."""
    _write(M, vcpu, vmcs.V_GUEST_GLOBAL_CTRL, global_ctrl)


# --- what may be injected, and how ----------------------------------------------------------------------
@jit()
def vmx_get_interrupt_shadow(M, vcpu):
    """STI_BLOCKING, MOV_SS_BLOCKING: the instruction behind an STI or MOV SS is still to come."""
    return _read(M, vcpu, vmcs.V_INTERRUPTIBILITY) & SHADOWS


@jit()
def vmx_set_interrupt_shadow(M, vcpu, shadow):
    """Set them."""
    rest = _read(M, vcpu, vmcs.V_INTERRUPTIBILITY) & ~SHADOWS
    _write(M, vcpu, vmcs.V_INTERRUPTIBILITY, rest | shadow)


@jit()
def vmx_get_nmi_mask(M, vcpu):
    """Whether it handles an NMI, up to IRET."""
    return _read(M, vcpu, vmcs.V_INTERRUPTIBILITY) & vmcs.NMI_BLOCKING != ZERO


@jit()
def vmx_clear_nmi_mask(M, vcpu):
    """An NMI that was not delivered after all (vmx_set_nmi_mask)."""
    rest = _read(M, vcpu, vmcs.V_INTERRUPTIBILITY) & ~vmcs.NMI_BLOCKING
    _write(M, vcpu, vmcs.V_INTERRUPTIBILITY, rest)


@jit()
def vmx_nmi_blocked(M, vcpu):
    """Whether an NMI must wait."""
    return _read(M, vcpu, vmcs.V_INTERRUPTIBILITY) & (SHADOWS | vmcs.NMI_BLOCKING) != ZERO


@jit()
def vmx_interrupt_blocked(M, vcpu):
    """Whether an interrupt must wait."""
    return kvm_get_rflags(M, vcpu) & X86_EFLAGS_IF == ZERO or vmx_get_interrupt_shadow(M, vcpu) != ZERO


@jit()
def vmx_inject_exception(M, vcpu, soft):
    """The exception that is queued; `soft` is of INT3 or INTO. vcpu.entry_intr_info says what enters."""
    kind = vmcs.TYPE_HARD_EXCEPTION
    if soft:
        kind = vmcs.TYPE_SOFT_EXCEPTION
        _write(M, vcpu, vmcs.V_ENTRY_LEN, vcpu.event_exit_inst_len)
    vcpu.entry_intr_info = vmcs.INTR_VALID | (kind << U8) | U64(vcpu.exception)
    if vcpu.exception_has_error != 0:
        vcpu.entry_intr_info |= vmcs.INTR_HAS_ERROR
        _write(M, vcpu, vmcs.V_ENTRY_ERROR, vcpu.exception_error)
    _write(M, vcpu, vmcs.V_ENTRY_INTR, vcpu.entry_intr_info)


@jit()
def vmx_inject_nmi(M, vcpu):
    """An NMI."""
    vcpu.entry_intr_info = vmcs.NMI_INFO
    _write(M, vcpu, vmcs.V_ENTRY_INTR, vcpu.entry_intr_info)


@jit()
def vmx_inject_irq(M, vcpu, vector):
    """An interrupt."""
    vcpu.entry_intr_info = vmcs.INTR_VALID | U64(vector)
    _write(M, vcpu, vmcs.V_ENTRY_INTR, vcpu.entry_intr_info)


@jit()
def vmx_enable_windows(M, vcpu, nmi, irq):
    """Exit as soon as an NMI, an interrupt can be taken (vmx_enable_nmi_window, vmx_enable_irq_window)."""
    proc = _read(M, vcpu, vmcs.V_PROC)
    wanted = proc & ~(vmcs.PROC_NMI_WINDOW | vmcs.PROC_INTR_WINDOW)
    if nmi:
        wanted |= vmcs.PROC_NMI_WINDOW
    if irq:
        wanted |= vmcs.PROC_INTR_WINDOW
    if wanted != proc:
        _write(M, vcpu, vmcs.V_PROC, wanted)


# --- debugging ------------------------------------------------------------------------------------------
@jit()
def vmx_get_dr7(M, vcpu):
    """DR7 that counts while the guest runs."""
    return _read(M, vcpu, vmcs.V_DR7)


@jit()
def vmx_set_dr7(M, vcpu, dr7):
    """Set it."""
    _write(M, vcpu, vmcs.V_DR7, dr7)


@jit()
def vmx_set_exception_bitmap(M, vcpu, exceptions):
    """Which of the guest's exceptions exit."""
    _write(M, vcpu, vmcs.V_EXCEPTIONS, exceptions)


@jit()
def vmx_set_dr_intercepts(M, vcpu, exits):
    """Whether MOV DR exits."""
    proc = _read(M, vcpu, vmcs.V_PROC)
    _write(M, vcpu, vmcs.V_PROC, proc | vmcs.PROC_MOV_DR if exits else proc & ~vmcs.PROC_MOV_DR)


@jit()
def vmx_add_pending_debug(M, vcpu, dr6):
    """A #DB for `dr6` waits behind the shadow; entry refuses TF with a shadow and without it."""
    _write(M, vcpu, vmcs.V_PENDING_DEBUG, _read(M, vcpu, vmcs.V_PENDING_DEBUG) | dr6)


@jit()
def vmx_exit_instruction_length(M, vcpu):
    """Bytes of the instruction that exited."""
    return _read(M, vcpu, vmcs.V_EXIT_LEN)


@jit()
def vmx_exit_reason(M, vcpu):
    """Why the guest really left; core.vmx.exit_reason is also what the emulator came upon."""
    return _read(M, vcpu, vmcs.V_EXIT_REASON)


# --- INIT -----------------------------------------------------------------------------------------------
@jit()
def vmx_vcpu_reset(M, vcpu):
    """INIT."""
    for n in range(len(_CLEARED)):
        _write(M, vcpu, _CLEARED[n], ZERO)
    _write(M, vcpu, vmcs.V_RIP, U64(RIP_RESET))
    _write(M, vcpu, _V_CS, U64(CS_RESET))
    _write(M, vcpu, vmcs.V_RFLAGS, X86_EFLAGS_FIXED)
    _write(M, vcpu, vmcs.V_CR0, U64(CR0_REAL_MODE))
    _write(M, vcpu, vmcs.V_CR0_SHADOW, U64(CR0_REAL_MODE))
    _write(M, vcpu, vmcs.V_GDTR_LIMIT, WORD)
    _write(M, vcpu, vmcs.V_IDTR_LIMIT, WORD)


@jit()
def vmx_start_at_page(M, vcpu, page):
    """A startup message: real mode being outside of the subset, it starts in 64-bit mode, at that page."""
    _write(M, vcpu, _V_CS, page << U8)
    _write(M, vcpu, vmcs.V_RIP, page << U12)
    _write(M, vcpu, vmcs.V_CR0, CR0_RESET)
    _write(M, vcpu, vmcs.V_CR0_SHADOW, CR0_RESET)
    _write(M, vcpu, vmcs.V_CR4, CR4_RESET)
    _write(M, vcpu, vmcs.V_CR4_SHADOW, CR4_RESET)
    _write(M, vcpu, vmcs.V_EFER, EFER_RESET)
