"""The boundary between root and non-root mode: what VM entry and VM exit load, save and inject.

The VMCS is a page of physical memory with our own layout (isa/vmcs.toml); the processor caches the controls
between entry and exit. SDM volume 3, chapters 25 to 28. General-purpose registers other than RSP are not
switched: the hypervisor's own code saves them.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.machine import msr_index, ring, state, vmcs
from vpmu_emu.machine.breakpoints import DR6_BS, DR6_TRAPS, DR7_RESET, set_dr
from vpmu_emu.machine.bus import EXIT_EPT_VIOLATION
from vpmu_emu.machine.clock import time_of_tsc, tsc_at
from vpmu_emu.machine.decode import rep_over
from vpmu_emu.machine.interrupts import (
    KIND_EXTERNAL,
    KIND_FAULT,
    KIND_NMI,
    KIND_SOFTWARE,
    KIND_TRAP,
    deliver,
)
from vpmu_emu.machine.lapic import lapic_ack
from vpmu_emu.machine.lbr import lbr_started
from vpmu_emu.machine.memory import drop_decoded, tlb_flush
from vpmu_emu.machine.msr import MSR_HIGH, MSR_RANGE, find_msr, msr_apply, msr_value
from vpmu_emu.machine.physical import ld32, ld64, st64
from vpmu_emu.machine.pmu import pmu_set_global_ctrl
from vpmu_emu.machine.ring import emit
from vpmu_emu.machine.u64 import BYTE, ONE, U3, U8, U64, ZERO
from vpmu_emu.machine.vectors import VECTOR_DB, VECTOR_PF
from vpmu_emu.machine.vmcs import vmread, vmwrite

BITMAP_WRITE = U64(0x800)
BITMAP_HIGH = U64(0x400)
_SEVEN = U64(7)
_LIST_ENTRY = 16
_AR_DPL = U64(5)


@jit()
def msr_bitmap_place(core, index, writes):
    """Bit of the MSR bitmap that decides over an access (byte * 8 + bit), or why none does: BY_*."""
    if core.vmx.proc & vmcs.PROC_MSR_BITMAPS == ZERO:
        return U64(ring.BY_NO_BITMAP)
    at = BITMAP_WRITE if writes != 0 else ZERO
    n = index
    if index >= MSR_RANGE:
        n = index - MSR_HIGH
        at += BITMAP_HIGH
        if n >= MSR_RANGE:
            return U64(ring.BY_RANGE)
    return (at << U3) + n


@jit()
def msr_intercepted(core, M, E, index, writes):
    """Whether the MSR bitmap sends this access to the hypervisor (SDM 3C 26.1.3)."""
    place = msr_bitmap_place(core, index, writes)
    exits = True  # with no bitmap, and out of both ranges: always
    if place < U64(ring.BY_RANGE):
        byte = U64(M[U64(core.vmx.msr_bitmap) + (place >> U3)])
        exits = (byte >> (place & _SEVEN)) & ONE != ZERO
    access = ring.ACCESS_WRMSR if writes != 0 else ring.ACCESS_RDMSR
    note = U64(access | ring.ACCESS_EXITS if exits else access)
    emit(E, core.t, ring.TR_INTERCEPT, core.rip, index, place, note)
    return exits


@jit()
def _load_list(core, M, E, address_field, count_field):
    address = np.int64(vmread(core, M, address_field))
    for k in range(np.int64(vmread(core, M, count_field))):
        at = U64(address + _LIST_ENTRY * k)
        index = ld32(M, at)
        rn = find_msr(index)
        if rn >= 0:
            msr_apply(core, E, rn, index, ld64(M, at + U8))


@jit()
def _store_list(core, M, address_field, count_field):
    address = np.int64(vmread(core, M, address_field))
    for k in range(np.int64(vmread(core, M, count_field))):
        at = U64(address + _LIST_ENTRY * k)
        index = ld32(M, at)
        rn = find_msr(index)
        if rn >= 0:
            st64(M, at + U8, msr_value(core, rn, index))


@jit()
def save_guest(core, M):
    """The core's state becomes the guest-state area. Modifies memory."""
    vmwrite(core, M, vmcs.V_RIP, core.rip)
    vmwrite(core, M, vmcs.V_RSP, core.regs[state.RSP])
    vmwrite(core, M, vmcs.V_RFLAGS, core.rflags)
    vmwrite(core, M, vmcs.V_CR0, core.cr0)
    vmwrite(core, M, vmcs.V_CR3, core.cr3)
    vmwrite(core, M, vmcs.V_CR4, core.cr4)
    vmwrite(core, M, vmcs.V_EFER, core.efer)
    vmwrite(core, M, vmcs.V_DEBUGCTL, core.pmu.debugctl)
    for k in range(6):
        vmwrite(core, M, vmcs.V_ES + 8 * k, core.selectors[k])
    vmwrite(core, M, vmcs.V_SS_AR, U64(core.cpl) << _AR_DPL)
    vmwrite(core, M, vmcs.V_LDTR, core.ldtr)
    vmwrite(core, M, vmcs.V_TR, core.tr)
    vmwrite(core, M, vmcs.V_TR_BASE, core.tr_base)
    vmwrite(core, M, vmcs.V_TR_LIMIT, core.tr_limit)
    vmwrite(core, M, vmcs.V_GDTR_BASE, core.gdt_base)
    vmwrite(core, M, vmcs.V_GDTR_LIMIT, core.gdt_limit)
    vmwrite(core, M, vmcs.V_IDTR_BASE, core.idt_base)
    vmwrite(core, M, vmcs.V_IDTR_LIMIT, core.idt_limit)
    vmwrite(core, M, vmcs.V_FS_BASE, core.regs[state.REG_FS])
    vmwrite(core, M, vmcs.V_GS_BASE, core.regs[state.REG_GS])
    blocking = ZERO
    if core.shadow == 1:
        blocking |= vmcs.STI_BLOCKING
    elif core.shadow == 2:
        blocking |= vmcs.MOV_SS_BLOCKING
    if core.nmi_blocked != 0:
        blocking |= vmcs.NMI_BLOCKING
    pending = core.pending_debug
    if pending & DR6_TRAPS != ZERO:
        pending |= vmcs.PENDING_BREAKPOINT
    vmwrite(core, M, vmcs.V_PENDING_DEBUG, pending)
    vmwrite(core, M, vmcs.V_INTERRUPTIBILITY, blocking)
    vmwrite(core, M, vmcs.V_ACTIVITY, U64(core.activity))


@jit()
def load_guest(core, M, E):
    """The guest-state area becomes the core's state. Modifies core."""
    core.rip = vmread(core, M, vmcs.V_RIP)
    core.regs[state.RSP] = vmread(core, M, vmcs.V_RSP)
    core.rflags = vmread(core, M, vmcs.V_RFLAGS)
    core.cr0 = vmread(core, M, vmcs.V_CR0)
    cr3 = vmread(core, M, vmcs.V_CR3)
    if cr3 != core.cr3:
        core.cr3 = cr3
        tlb_flush(core, 1)
        drop_decoded(E)
    core.cr4 = vmread(core, M, vmcs.V_CR4)
    core.efer = vmread(core, M, vmcs.V_EFER)
    core.pmu.debugctl = vmread(core, M, vmcs.V_DEBUGCTL)
    if core.pmu.debugctl & msr_index.DEBUGCTLMSR_LBR != ZERO:
        lbr_started(core)
    for k in range(6):
        core.selectors[k] = vmread(core, M, vmcs.V_ES + 8 * k)
    core.cpl = np.int64((vmread(core, M, vmcs.V_SS_AR) >> _AR_DPL) & U3)
    core.ldtr = vmread(core, M, vmcs.V_LDTR)
    core.tr = vmread(core, M, vmcs.V_TR)
    core.tr_base = vmread(core, M, vmcs.V_TR_BASE)
    core.tr_limit = vmread(core, M, vmcs.V_TR_LIMIT)
    core.gdt_base = vmread(core, M, vmcs.V_GDTR_BASE)
    core.gdt_limit = vmread(core, M, vmcs.V_GDTR_LIMIT)
    core.idt_base = vmread(core, M, vmcs.V_IDTR_BASE)
    core.idt_limit = vmread(core, M, vmcs.V_IDTR_LIMIT)
    core.regs[state.REG_FS] = vmread(core, M, vmcs.V_FS_BASE)
    core.regs[state.REG_GS] = vmread(core, M, vmcs.V_GS_BASE)
    blocking = vmread(core, M, vmcs.V_INTERRUPTIBILITY)
    pending = vmread(core, M, vmcs.V_PENDING_DEBUG)
    core.pending_debug = ZERO
    if pending & (vmcs.PENDING_BREAKPOINT | DR6_BS) != ZERO:
        core.pending_debug = pending & (DR6_TRAPS | DR6_BS)
    core.shadow = 0
    if blocking & vmcs.STI_BLOCKING != ZERO:
        core.shadow = 1
    elif blocking & vmcs.MOV_SS_BLOCKING != ZERO:
        core.shadow = 2
    core.nmi_blocked = 1 if blocking & vmcs.NMI_BLOCKING != ZERO else 0
    core.activity = np.int64(vmread(core, M, vmcs.V_ACTIVITY))


@jit()
def note_exit(core, reason, qualification, length):
    """An instruction leaves the guest: what the exit will say of it."""
    core.vmx.exit_reason = reason
    core.vmx.exit_qual = qualification
    core.vmx.exit_intr_info = ZERO
    core.vmx.exit_intr_err = ZERO
    core.vmx.exit_insn_len = length


@jit()
def note_interrupt_exit(core):
    """A physical interrupt or NMI ends the guest's run; acknowledged on exit if the control says so."""
    if core.nmi_pending != 0:
        core.nmi_pending = 0
        note_exit(core, vmcs.EXIT_EXCEPTION_NMI, ZERO, ZERO)
        core.vmx.exit_intr_info = vmcs.NMI_INFO
        return
    note_exit(core, vmcs.EXIT_EXTERNAL_INTERRUPT, ZERO, ZERO)


@jit()
def note_exception_exit(core, E, vector):
    """An exception of the bitmap ends the guest's run instead of being delivered."""
    qualification = E.fault_address if vector == VECTOR_PF else ZERO
    if vector == VECTOR_DB:
        qualification = E.debug_bits  # and neither DR6 nor DR7 changes (SDM 3C 28.1)
    note_exit(core, vmcs.EXIT_EXCEPTION_NMI, qualification, ZERO)
    core.vmx.exit_intr_info = vmcs.INTR_VALID | vmcs.TYPE_HARD_EXCEPTION << U8 | U64(vector)
    if E.fault_has_error != 0:
        core.vmx.exit_intr_info |= vmcs.INTR_HAS_ERROR
        core.vmx.exit_intr_err = E.fault_error


@jit()
def vm_exit(core, M, E, vector):
    """Leave non-root mode for the reason in core.vmx.exit_*. Modifies core and memory.

    `vector` is the external interrupt to acknowledge, -1 for none. Status flags must be folded.
    """
    vmx = core.vmx
    rep_over(core, E)
    if vector >= 0 and vmx.exit_ctl & vmcs.EXIT_ACK_INTR != ZERO:
        lapic_ack(core.lapic, vector)
        vmx.exit_intr_info = vmcs.INTR_VALID | U64(vector)
    save_guest(core, M)
    if vmx.exit_ctl & vmcs.EXIT_SAVE_GLOBAL_CTRL != ZERO:
        vmwrite(core, M, vmcs.V_GUEST_GLOBAL_CTRL, core.pmu.global_ctrl)
    # SDM 3C 28.4 and 28.5: guest MSRs are stored before host state is loaded
    _store_list(core, M, vmcs.V_STORE_ADDR, vmcs.V_STORE_COUNT)
    if vmx.exit_ctl & vmcs.EXIT_SAVE_DEBUG != ZERO:
        vmwrite(core, M, vmcs.V_DR7, core.dr7)
    vmx.nonroot = 0
    core.pmu.debugctl = ZERO  # SDM 3C 28.5.1
    set_dr(core, 7, DR7_RESET)
    core.pending_debug = ZERO
    if vmx.exit_ctl & vmcs.EXIT_LOAD_GLOBAL_CTRL != ZERO:
        pmu_set_global_ctrl(core, E, vmread(core, M, vmcs.V_HOST_GLOBAL_CTRL))
    _load_list(core, M, E, vmcs.V_EXIT_LOAD_ADDR, vmcs.V_EXIT_LOAD_COUNT)
    vmwrite(core, M, vmcs.V_EXIT_REASON, vmx.exit_reason)
    vmwrite(core, M, vmcs.V_EXIT_QUAL, vmx.exit_qual)
    vmwrite(core, M, vmcs.V_EXIT_INTR, vmx.exit_intr_info)
    vmwrite(core, M, vmcs.V_EXIT_ERROR, vmx.exit_intr_err)
    vmwrite(core, M, vmcs.V_EXIT_LEN, vmx.exit_insn_len)
    vmwrite(core, M, vmcs.V_IDT_VECTORING, vmx.idt_vectoring)
    if vmx.exit_reason == EXIT_EPT_VIOLATION:
        vmwrite(core, M, vmcs.V_GUEST_PHYSICAL, E.fault_address)
    vmwrite(core, M, vmcs.V_ENTRY_INTR, vmread(core, M, vmcs.V_ENTRY_INTR) & ~vmcs.INTR_VALID)
    core.stats.exits[vmx.exit_reason & U64(0x7F)] += ONE
    emit(E, core.t, ring.TR_VM_EXIT, core.rip, vmx.exit_reason, vmx.exit_qual, vmx.exit_intr_info)
    vmx.exit_t = core.t
    core.cpl = 0
    core.shadow = 0
    core.nmi_blocked = 0
    core.activity = 0
    vmx.preempt_at = state.NEVER


@jit()
def vm_exit_undelivered(core, M, E, info, error):
    """Leave non-root mode for what core.vmx.exit_* says while event `info` is delivered (SDM 3C 28.2.4)."""
    core.vmx.idt_vectoring = info
    vmwrite(core, M, vmcs.V_IDT_VECTORING_ERROR, error)
    vm_exit(core, M, E, -1)


@jit()
def _inject(core, M, E, info):
    vector = np.int64(info & BYTE)
    kind_bits = (info >> U8) & _SEVEN
    has_error = 1 if info & vmcs.INTR_HAS_ERROR != ZERO else 0
    error = vmread(core, M, vmcs.V_ENTRY_ERROR)
    rip = core.rip
    kind = KIND_FAULT
    if kind_bits == vmcs.TYPE_EXTERNAL:
        kind = KIND_EXTERNAL
    elif kind_bits == vmcs.TYPE_NMI:
        kind = KIND_NMI
        core.nmi_blocked = 1
    elif kind_bits == vmcs.TYPE_SOFT_INTR or kind_bits == vmcs.TYPE_SOFT_EXCEPTION:
        kind = KIND_SOFTWARE
        rip += vmread(core, M, vmcs.V_ENTRY_LEN)
    elif vector == VECTOR_DB:
        kind = KIND_TRAP
    E.fault_address = core.cr2
    core.activity = 0
    return deliver(core, M, E, vector, kind, has_error, error, rip)


@jit()
def vm_entry(core, M, E):
    """VMLAUNCH or VMRESUME: 0 in the guest now, else the exit reason of a failed entry.

    A triple fault while injecting, or no memory to inject into, leaves at once, as an exit does: then the
    result is 0 too, and
    `core.vmx.nonroot` is 0. Modifies core.
    """
    vmx = core.vmx
    vmx.pin = vmread(core, M, vmcs.V_PIN)
    vmx.proc = vmread(core, M, vmcs.V_PROC)
    vmx.exceptions = vmread(core, M, vmcs.V_EXCEPTIONS)
    vmx.exit_ctl = vmread(core, M, vmcs.V_EXIT_CTL)
    vmx.entry_ctl = vmread(core, M, vmcs.V_ENTRY_CTL)
    vmx.msr_bitmap = np.int64(vmread(core, M, vmcs.V_MSR_BITMAP))
    vmx.tsc_offset = ZERO
    if vmx.proc & vmcs.PROC_TSC_OFFSET != ZERO:
        vmx.tsc_offset = vmread(core, M, vmcs.V_TSC_OFFSET)
    if vmx.entry_ctl & vmcs.ENTRY_LOAD_GLOBAL_CTRL != ZERO:
        value = vmread(core, M, vmcs.V_GUEST_GLOBAL_CTRL)
        rn = find_msr(msr_index.MSR_CORE_PERF_GLOBAL_CTRL)
        if value & core.msr_reserved[rn >> 6] != ZERO:
            return np.int64(vmcs.EXIT_INVALID_STATE | vmcs.ENTRY_FAILURE)
        pmu_set_global_ctrl(core, E, value)
    vmx.idt_vectoring = ZERO
    load_guest(core, M, E)
    if vmx.entry_ctl & vmcs.ENTRY_LOAD_DEBUG != ZERO:
        set_dr(core, 7, vmread(core, M, vmcs.V_DR7))
    _load_list(core, M, E, vmcs.V_ENTRY_LOAD_ADDR, vmcs.V_ENTRY_LOAD_COUNT)
    info = vmread(core, M, vmcs.V_ENTRY_INTR)
    emit(E, core.t, ring.TR_VM_ENTRY, core.rip, info, ZERO, ZERO)
    vmx.nonroot = 1
    vmx.preempt_at = state.NEVER
    if vmx.pin & vmcs.PIN_PREEMPTION != ZERO:
        # SDM 3C 25.5.1: it counts with the TSC
        vmx.preempt_at = time_of_tsc(core, tsc_at(core, core.t) + vmread(core, M, vmcs.V_PREEMPTION))
    if info & vmcs.INTR_VALID != ZERO:
        code = _inject(core, M, E, info)
        if code == state.CODE_EXIT:
            vm_exit_undelivered(core, M, E, info, vmread(core, M, vmcs.V_ENTRY_ERROR))
        elif code != state.CODE_NEXT:
            note_exit(core, vmcs.EXIT_TRIPLE_FAULT, ZERO, ZERO)
            vm_exit(core, M, E, -1)
    return 0
