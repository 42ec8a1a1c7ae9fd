"""What the virtual PMUs share: the guest's registers, who may count, software counts, PMI delivery.

A pmc is 0..7 for GP and 8 + j for fixed counter j. Handlers return 0, or 1 for #GP.
arch/x86/kvm/pmu.c, vmx/pmu_intel.c.
"""

from __future__ import annotations

import numpy as np

from vpmu_emu._jit import jit
from vpmu_emu.linux.charge import charge
from vpmu_emu.linux.kvm.nmi import kvm_inject_nmi
from vpmu_emu.linux.native import cost
from vpmu_emu.linux.overflow_handler import kvm_make_request, pmc_bit
from vpmu_emu.linux.percpu import this_core
from vpmu_emu.linux.perf.times import sched_clock
from vpmu_emu.linux.state import (
    KVM_REQ_PMU,
    N_GP_PMC,
)
from vpmu_emu.linux.trace_kinds import TR_PMI_INJECT
from vpmu_emu.machine import msr_index
from vpmu_emu.machine.lapic import LVT_DROPPED, LVT_NMI, LVT_PMI, lapic_deliver_lvt
from vpmu_emu.machine.lbr import R_LBR_SELECT
from vpmu_emu.machine.msr import read_tsc
from vpmu_emu.machine.mutants import I_GLOBAL_CTRL, I_NO_LVTPC_MASK, I_OS
from vpmu_emu.machine.pmu_rules import raises_pmi, rdpmc_ecx
from vpmu_emu.machine.ring import emit
from vpmu_emu.machine.u64 import ONE, U2, U3, U15, U64, ZERO
from vpmu_emu.tables.events import event_by_name

COST_DELIVER_PMI = cost("kvm_pmu_deliver_pmi")

EVENT_INSTRUCTIONS = U64(event_by_name("instructions").code)
EVENT_BRANCHES = U64(event_by_name("branches").code)

# what a PMU MSR of the guest is; the low four bits of the answer are the pmc
PMU_MSR_NONE = -1
PMU_PERFCTR = 0 << 4
PMU_PMC = 1 << 4  # full-width address
PMU_EVNTSEL = 2 << 4
PMU_FIXED_CTR = 3 << 4
PMU_FIXED_CTR_CTRL = 4 << 4
PMU_GLOBAL_STATUS = 5 << 4
PMU_GLOBAL_CTRL = 6 << 4
PMU_OVF_CTRL = 7 << 4
PMU_PEBS_ENABLE = 8 << 4
PMU_DS_AREA = 9 << 4

RDPMC_TYPE = U64(0xFFFF_0000)
RDPMC_INDEX = U64(0xFFFF)
PMC_HOST_TSC, PMC_REAL_TIME, PMC_APPARENT_TIME = U64(0x10000), U64(0x10001), U64(0x10002)


@jit(inline=True)
def intel_pmu_lbr_is_enabled(vcpu):
    """Whether the guest was given branch records."""
    return vcpu.msr_n[R_LBR_SELECT] != 0


@jit()
def kvm_pmu_is_valid_msr(pmu, index):
    """Which PMU register of this guest MSR `index` is: PMU_* plus the pmc, or PMU_MSR_NONE."""
    if pmu.version == 0:
        return PMU_MSR_NONE
    gp = U64(pmu.nr_arch_gp_counters)
    if index >= msr_index.MSR_IA32_PERFCTR0 and index - msr_index.MSR_IA32_PERFCTR0 < gp:
        return PMU_PERFCTR | np.int64(index - msr_index.MSR_IA32_PERFCTR0)
    if index >= msr_index.MSR_P6_EVNTSEL0 and index - msr_index.MSR_P6_EVNTSEL0 < gp:
        return PMU_EVNTSEL | np.int64(index - msr_index.MSR_P6_EVNTSEL0)
    if (
        index >= msr_index.MSR_IA32_PMC0
        and index - msr_index.MSR_IA32_PMC0 < gp
        and pmu.perf_capabilities & msr_index.PERF_CAP_FW_WRITES != ZERO
    ):
        return PMU_PMC | np.int64(index - msr_index.MSR_IA32_PMC0)
    if pmu.version > 1:
        if (
            index >= msr_index.MSR_CORE_PERF_FIXED_CTR0
            and index - msr_index.MSR_CORE_PERF_FIXED_CTR0 < U64(pmu.nr_arch_fixed_counters)
        ):
            return PMU_FIXED_CTR | (np.int64(index - msr_index.MSR_CORE_PERF_FIXED_CTR0) + N_GP_PMC)
        if index == msr_index.MSR_CORE_PERF_FIXED_CTR_CTRL:
            return PMU_FIXED_CTR_CTRL
        if index == msr_index.MSR_CORE_PERF_GLOBAL_STATUS:
            return PMU_GLOBAL_STATUS
        if index == msr_index.MSR_CORE_PERF_GLOBAL_CTRL:
            return PMU_GLOBAL_CTRL
        if index == msr_index.MSR_CORE_PERF_GLOBAL_OVF_CTRL:
            return PMU_OVF_CTRL
    if (
        index == msr_index.MSR_IA32_PEBS_ENABLE
        and pmu.perf_capabilities & msr_index.PERF_CAP_PEBS_FORMAT != ZERO
    ):
        return PMU_PEBS_ENABLE
    if index == msr_index.MSR_IA32_DS_AREA and pmu.has_ds != 0:
        return PMU_DS_AREA
    return PMU_MSR_NONE


@jit(inline=True)
def fixed_ctrl_field(ctrl, i):
    """The four control bits of fixed pmc i (8 and up)."""
    return (ctrl >> U64(4 * (i - N_GP_PMC))) & U15


@jit()
def pmc_is_globally_enabled(S, vcpu, i):
    """Without GLOBAL_CTRL (version 1) every counter is."""
    pmu = vcpu.pmu
    if pmu.version < 2 or this_core(S).inject & I_GLOBAL_CTRL != ZERO:
        return True
    return pmu.global_ctrl & pmc_bit(i) != ZERO


@jit()
def pmc_is_locally_enabled(pmu, i):
    """By its own selector or control field."""
    if i < N_GP_PMC:
        return pmu.pmcs[i].eventsel & msr_index.ARCH_PERFMON_EVENTSEL_ENABLE != ZERO
    return fixed_ctrl_field(pmu.fixed_ctr_ctrl, i) & U3 != ZERO


@jit()
def pmc_wants_pmi(S, vcpu, i):
    """The PMI enable bit of pmc i as the guest set it."""
    pmu = vcpu.pmu
    if i < N_GP_PMC:
        asked = pmu.pmcs[i].eventsel & msr_index.ARCH_PERFMON_EVENTSEL_INT != ZERO
    else:
        asked = fixed_ctrl_field(pmu.fixed_ctr_ctrl, i) & msr_index.INTEL_FIXED_0_ENABLE_PMI != ZERO
    return raises_pmi(this_core(S), i, asked)


@jit()
def kvm_pmu_recalc_pmc_emulation(pmu, i):
    """Does pmc i count the instructions, or the branches, that KVM emulates?"""
    bit = pmc_bit(i)
    pmu.pmc_counting_instructions &= ~bit
    pmu.pmc_counting_branches &= ~bit
    if pmc_is_locally_enabled(pmu, i):
        # Only EVENT and UMASK are looked at: a counter mask, edge or invert is ignored.
        event = pmu.pmcs[i].eventsel & msr_index.INTEL_ARCH_EVENT_MASK
        if event == EVENT_INSTRUCTIONS:
            pmu.pmc_counting_instructions |= bit
        elif event == EVENT_BRANCHES:
            pmu.pmc_counting_branches |= bit


@jit()
def kvm_pmu_request_counter_reprogram(S, E, vcpu, i):
    """Have pmc i reprogrammed before the next entry."""
    vcpu.pmu.reprogram_pmi |= pmc_bit(i)
    kvm_make_request(S, E, vcpu, KVM_REQ_PMU)


@jit()
def cpl_is_matched(S, vcpu, i):
    """Does pmc i count at the privilege level that the guest is at?"""
    pmu = vcpu.pmu
    if i < N_GP_PMC:
        os = (
            pmu.pmcs[i].eventsel & msr_index.ARCH_PERFMON_EVENTSEL_OS != ZERO
            or this_core(S).inject & I_OS != ZERO
        )
        usr = pmu.pmcs[i].eventsel & msr_index.ARCH_PERFMON_EVENTSEL_USR != ZERO
    else:
        field = fixed_ctrl_field(pmu.fixed_ctr_ctrl, i)
        os = field & ONE != ZERO
        usr = field & U2 != ZERO
    if os == usr:
        return os
    return os if vcpu.cpl == 0 else usr



@jit()
def kvm_apic_local_deliver(S, vcpu, which):
    """Deliver an entry of the guest's LVT; a PMI masks its entry, as hardware does."""
    sent = lapic_deliver_lvt(this_core(S).vapic, which)
    if sent == LVT_NMI:
        kvm_inject_nmi(vcpu)
    return sent


@jit()
def kvm_pmu_deliver_pmi(S, E, vcpu):
    """KVM_REQ_PMI: the guest's PMI through its virtual LVTPC."""
    core = this_core(S)
    charge(S, E, COST_DELIVER_PMI)
    lvtpc = core.vapic.lvt[LVT_PMI]
    sent = kvm_apic_local_deliver(S, vcpu, LVT_PMI)
    if sent != LVT_DROPPED:
        core.stats.pmis += ONE
        # a guest has the vendor of its host: guest_cpuid_is_intel_compatible()
        if core.inject & I_NO_LVTPC_MASK != ZERO or core.pmu.masks_lvtpc == 0:
            core.vapic.lvt[LVT_PMI] &= ~msr_index.APIC_LVT_MASKED
    emit(E, core.t, TR_PMI_INJECT, ZERO, lvtpc, U64(sent), ZERO)


@jit(inline=True)
def is_vmware_backdoor_pmc(vcpu, ecx):
    """Whether RDPMC with this ECX reads a clock: KVM asks for a vPMU, and for no enable_vmware_backdoor."""
    return ecx >= PMC_HOST_TSC and ecx <= PMC_APPARENT_TIME and vcpu.pmu.version != 0


@jit()
def kvm_pmu_rdpmc_vmware(S, vcpu, ecx):
    """VMware's pseudo counters: the host's TSC, nanoseconds since its boot, and since the VM was made."""
    core = this_core(S)
    if ecx == PMC_HOST_TSC:
        return read_tsc(core)
    now = sched_clock(S, core.t)
    return now if ecx == PMC_REAL_TIME else now - sched_clock(S, S.vms[vcpu.vm].created)


@jit()
def kvm_pmu_rdpmc_idx(S, vcpu, ecx):
    """The pmc that RDPMC with this ECX reads, -1 for #GP (kvm_pmu_rdpmc; only types 0 and 0x4000)."""
    pmu = vcpu.pmu
    if pmu.version == 0:
        return -1
    ecx = rdpmc_ecx(this_core(S), ecx)
    kind = ecx & RDPMC_TYPE
    index = ecx & RDPMC_INDEX
    if kind == ZERO:
        if index >= U64(pmu.nr_arch_gp_counters):
            return -1
        i = np.int64(index)
    elif kind == msr_index.INTEL_PMC_FIXED_RDPMC_BASE:
        if index >= U64(pmu.nr_arch_fixed_counters):
            return -1
        i = np.int64(index) + N_GP_PMC
    else:
        return -1
    # CR4.PCE = 0 with CPL > 0 has raised #GP in the guest, without an exit.
    return i
