"""An instruction that KVM did for the guest counts in software: hardware did not see it retire.

arch/x86/kvm/pmu.c kvm_pmu_trigger_event().
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.linux import patches
from vpmu_emu.linux.kvm import pmu_ops
from vpmu_emu.linux.kvm.filter import check_pmu_event_filter
from vpmu_emu.linux.kvm.pmu import cpl_is_matched
from vpmu_emu.linux.native import cost, retire_work
from vpmu_emu.linux.overflow_handler import pmc_bit
from vpmu_emu.linux.patches import lacks
from vpmu_emu.linux.percpu import this_core
from vpmu_emu.linux.state import N_PMC
from vpmu_emu.linux.trace_kinds import TR_EMULATED
from vpmu_emu.machine.mutants import I_GLOBAL_CTRL
from vpmu_emu.machine.ring import emit
from vpmu_emu.machine.u64 import ZERO

COST_TRIGGER = cost("kvm_pmu_trigger_event")


@jit()
def kvm_pmu_trigger_event(S, E, vcpu, counting):
    """Count one instruction that KVM emulated in all pmcs of the set `counting` that are on."""
    if counting == ZERO or lacks(S, patches.EMULATED) or S.config.count_emulated == 0:
        return
    retire_work(S, E, COST_TRIGGER)
    pmu = vcpu.pmu
    unchecked = pmu_ops.counts_while_off(S, vcpu) or this_core(S).inject & I_GLOBAL_CTRL != ZERO
    if not unchecked and pmu.version > 1:
        counting &= pmu.global_ctrl
    counted = ZERO
    for i in range(N_PMC):
        bit = pmc_bit(i)
        if counting & bit == ZERO:
            continue
        # The filter is looked up here, at each instruction, and nowhere earlier.
        if not check_pmu_event_filter(S, E, vcpu, i) or not cpl_is_matched(S, vcpu, i):
            continue
        pmu_ops.incr_counter(S, E, vcpu, i)
        counted |= bit
    if counted != ZERO:
        emit(E, this_core(S).t, TR_EMULATED, ZERO, counted, ZERO, ZERO)
