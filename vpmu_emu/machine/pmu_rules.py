"""Rules of the PMU that silicon and KVM share, each right by itself; a deliberate bug may spoil it."""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.machine import msr_index, mutants
from vpmu_emu.machine.lapic import LVT_PMI
from vpmu_emu.machine.state import N_GP
from vpmu_emu.machine.u64 import BYTE, LOW32, ONE, U31, U64, ZERO


@jit()
def perfctr_value(core, value):
    """What a write to the legacy address of a counter loads: 32 bits, sign-extended (SDM 3B 20.2.8)."""
    if core.inject & mutants.I_STORE_64 != ZERO:
        return value
    low = value & LOW32
    if low >> U31 != ZERO and core.inject & mutants.I_NO_SIGN == ZERO:
        low |= mutants._HIGH32
    return low


@jit()
def rdpmc_ecx(core, ecx):
    """The counter that ECX of RDPMC names; there is no fast form on architectural PMUs."""
    if core.inject & mutants._FAST != ZERO:
        return ecx & ~mutants._FAST_FLAG
    if core.inject & mutants.I_RDPMC_64 != ZERO and ecx == mutants._INDEX_64:
        return ZERO
    return ecx


@jit()
def rdpmc_result(core, ecx, value):
    """What RDPMC leaves in EDX:EAX of a counter's value."""
    fast = core.inject & mutants.I_FAST_32 != ZERO and ecx & mutants._FAST_FLAG != ZERO
    return value & LOW32 if fast or core.inject & mutants.I_RDPMC_32 != ZERO else value


@jit()
def sets_status(core, i):
    """Whether the overflow of counter i (fixed j is N_GP + j) shows in GLOBAL_STATUS."""
    if core.inject & mutants.I_STATUS_NEVER != ZERO:
        return False
    return i < N_GP or core.inject & mutants.I_FIXED_STATUS == ZERO


@jit()
def raises_pmi(core, i, asked):
    """Whether the overflow of counter i raises a PMI; its selector's bit says `asked`."""
    if core.inject & mutants.I_PMI_ALWAYS != ZERO:
        return True
    if core.inject & mutants.I_PMI_NEVER != ZERO:
        return False
    if i >= N_GP and core.inject & mutants.I_FIXED_PMI != ZERO:
        return False
    return asked


@jit()
def _drop_pmi(lapic):
    lvt = lapic.lvt[LVT_PMI]
    if lvt & msr_index.APIC_MODE_MASK == msr_index.APIC_DM_FIXED:
        vector = lvt & BYTE
        lapic.irr[vector >> U64(6)] &= ~(ONE << (vector & U64(63)))


@jit()
def status_after_reset(core, status, value):
    """GLOBAL_STATUS after a write of `value` to STATUS_RESET."""
    if core.inject & mutants.I_RESET_DROPS_PMI != ZERO:
        _drop_pmi(core.lapic)
        _drop_pmi(core.vapic)
    if core.inject & mutants.I_RESET_IGNORED != ZERO:
        return status
    return ZERO if core.inject & mutants.I_RESET_ALL != ZERO else status & ~value


@jit()
def distance(core, left):
    """How far a counter may move unwatched that overflows after `left` events."""
    if core.inject & mutants._FASTER != ZERO:
        return (left + ONE) >> ONE
    return left - ONE if core.inject & mutants.I_EARLY != ZERO and left > ONE else left
