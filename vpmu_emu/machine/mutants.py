"""Deliberate bugs: bits of `core.inject`, looked at only where something rare happens.

Silicon and the host kernel's model of a PMU ask the same functions, so that a bug is the same in every
mode. Each gives the right answer while its bits are clear. `isa/mutants.toml` says what each bug is.
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.machine.lapic import DELIVERY_MODE, LVT_PMI, MODE_FIXED
from vpmu_emu.machine.state import N_GP
from vpmu_emu.machine.u64 import BYTE, LOW32, ONE, U31, U64, ZERO
from vpmu_emu.tables.mutants import mutant

I_BOTH_WRMSRS = mutant("both-wrmsrs-count").bit
I_NO_WRMSR = mutant("no-wrmsr-counts").bit
I_CALL = mutant("call-not-a-branch").bit
I_UNTAKEN = mutant("untaken-jcc-not-a-branch").bit
I_MORE_INSTRUCTIONS = mutant("instructions-2-percent-more").bit
I_FIXED0_DOUBLE = mutant("fixed0-counts-double").bit
I_FEP = mutant("fep-not-counted").bit
I_CPUID = mutant("cpuid-exit-not-counted").bit
I_CMASK = mutant("cmask-ignored").bit
I_OS = mutant("os-bit-ignored").bit
I_GLOBAL_CTRL = mutant("global-ctrl-ignored").bit
I_NO_SIGN = mutant("perfctr-not-sign-extended").bit
I_STORE_64 = mutant("perfctr-stores-64-bits").bit
I_RDMSR_32 = mutant("rdmsr-perfctr-32-bits").bit
I_PMC_WIDTH = mutant("pmc-width-unchecked").bit
I_FIXED_32 = mutant("fixed-write-32-bits").bit
I_RUNNING_WRITE = mutant("running-write-ignored").bit
I_OFF_CLEARS = mutant("evtsel-off-clears").bit
I_RDPMC_64 = mutant("rdpmc-64-accepted").bit
I_RDPMC_32 = mutant("rdpmc-low-32-bits").bit
I_FAST_32 = mutant("fast-rdpmc-low-32-bits").bit
I_FAST_FULL = mutant("fast-rdpmc-full-width").bit
I_STATUS_NEVER = mutant("status-never-set").bit
I_FIXED_STATUS = mutant("fixed-status-never-set").bit
I_EARLY = mutant("overflow-flagged-early").bit
I_RESET_IGNORED = mutant("status-reset-ignored").bit
I_RESET_ALL = mutant("status-reset-clears-all").bit
I_RESET_DROPS_PMI = mutant("status-reset-drops-pmi").bit
I_PMI_NEVER = mutant("pmi-never-raised").bit
I_PMI_ALWAYS = mutant("pmi-always-raised").bit
I_FIXED_PMI = mutant("fixed-pmi-missing").bit
I_NO_LVTPC_MASK = mutant("no-lvtpc-mask").bit
I_ABSENT_PERFCTR = mutant("absent-perfctr-faults").bit
I_RESET_TO_0 = mutant("global-ctrl-resets-to-0").bit
I_PMI_BEFORE_PMU = mutant("pmi-before-pmu").bit
I_KEEP_SELECTORS = mutant("keep-selectors").bit
I_LOSE_REPROGRAM = mutant("lose-reprogram").bit
I_FILTER_IGNORED = mutant("filter-ignored").bit

_FASTER = I_MORE_INSTRUCTIONS | I_FIXED0_DOUBLE
_FAST = I_FAST_32 | I_FAST_FULL
_FAST_FLAG = U64(1 << 31)
_INDEX_64 = U64(64)
_HIGH32 = U64(0xFFFF_FFFF_0000_0000)


@jit()
def perfctr_value(core, value):
    """What a write to the legacy address of a counter loads: 32 bits, sign-extended (SDM 3B 20.2.8)."""
    if core.inject & I_STORE_64 != ZERO:
        return value
    low = value & LOW32
    if low >> U31 != ZERO and core.inject & I_NO_SIGN == ZERO:
        low |= _HIGH32
    return low


@jit()
def rdpmc_ecx(core, ecx):
    """The counter that ECX of RDPMC names; there is no fast form on architectural PMUs."""
    if core.inject & _FAST != ZERO:
        return ecx & ~_FAST_FLAG
    if core.inject & I_RDPMC_64 != ZERO and ecx == _INDEX_64:
        return ZERO
    return ecx


@jit()
def rdpmc_result(core, ecx, value):
    """What RDPMC leaves in EDX:EAX of a counter's value."""
    fast = core.inject & I_FAST_32 != ZERO and ecx & _FAST_FLAG != ZERO
    return value & LOW32 if fast or core.inject & I_RDPMC_32 != ZERO else value


@jit()
def sets_status(core, i):
    """Whether the overflow of counter i (fixed j is N_GP + j) shows in GLOBAL_STATUS."""
    if core.inject & I_STATUS_NEVER != ZERO:
        return False
    return i < N_GP or core.inject & I_FIXED_STATUS == ZERO


@jit()
def raises_pmi(core, i, asked):
    """Whether the overflow of counter i raises a PMI; its selector's bit says `asked`."""
    if core.inject & I_PMI_ALWAYS != ZERO:
        return True
    if core.inject & I_PMI_NEVER != ZERO or (i >= N_GP and core.inject & I_FIXED_PMI != ZERO):
        return False
    return asked


@jit()
def _drop_pmi(lapic):
    lvt = lapic.lvt[LVT_PMI]
    if lvt & DELIVERY_MODE == MODE_FIXED:
        vector = lvt & BYTE
        lapic.irr[vector >> U64(6)] &= ~(ONE << (vector & U64(63)))


@jit()
def status_after_reset(core, status, value):
    """GLOBAL_STATUS after a write of `value` to STATUS_RESET."""
    if core.inject & I_RESET_DROPS_PMI != ZERO:
        _drop_pmi(core.lapic)
        _drop_pmi(core.vapic)
    if core.inject & I_RESET_IGNORED != ZERO:
        return status
    return ZERO if core.inject & I_RESET_ALL != ZERO else status & ~value


@jit()
def distance(core, left):
    """How far a counter may move unwatched that overflows after `left` events."""
    if core.inject & _FASTER != ZERO:
        return (left + ONE) >> ONE
    return left - ONE if core.inject & I_EARLY != ZERO and left > ONE else left
