"""kvm_pmu_refresh(): the vPMU of a vCPU follows its CPUID, its PERF_CAPABILITIES and what its VM may have.

arch/x86/kvm/pmu.c, vmx/pmu_intel.c intel_pmu_refresh().
"""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np

from vpmu_emu.linux.kvm.cpuid import leaves_of, refreshed, told_by
from vpmu_emu.linux.kvm.vmx.intercepts import recalc_intercepts
from vpmu_emu.linux.kvm.vmx.vmcs import vmcs_write
from vpmu_emu.linux.state import LAZY, N_GP_PMC, Q_GLOBAL_CTRL_RESET, VPMU_EMULATED, VPMU_MEDIATED
from vpmu_emu.machine.mutants import I_ABSENT_PERFCTR, I_RESET_TO_0
from vpmu_emu.tables.cpus import CpuModel
from vpmu_emu.tables.events import LISTS, event_by_name
from vpmu_emu.tables.modes import kernel_version
from vpmu_emu.tables.msrs import MSRS, ROW, Shape, rules
from vpmu_emu.tables.mutants import unchecked_msrs


def few_caps(S: Any, k: int) -> bool:
    """Whether guests of VM k have neither branch records nor PEBS.

    That is the module's to say; a VM that owns the PMU beside others that do not has never had any.
    """
    return bool(S.config.few_caps) or (int(S.vms[k].vpmu) != VPMU_EMULATED and not S.config.owns_pmu)


def fixed_cap(S: Any, k: int) -> int:
    """KVM_MAX_NR_INTEL_FIXED_COUNTERS for VM k: it was raised for guests that own the PMU alone."""
    return int(S.config.fixed_cap) if int(S.vms[k].vpmu) != VPMU_EMULATED else 3


def vcpu_shape(S: Any, model: CpuModel, k: int) -> Shape:
    """The PMU that vCPU k has by its CPUID, its PERF_CAPABILITIES and what its VM may have."""
    vcpu, vm, config = S.vcpus[k], S.vms[int(S.vcpus[k].vm)], S.config
    host = model.shape()
    told = told_by(host, leaves_of(vcpu), int(vcpu.perf_capabilities) & host.perf_capabilities)
    if few_caps(S, int(vcpu.vm)):
        told = attrs.evolve(told, ds=False)
    if not config.enable_pmu:
        told = attrs.evolve(told, ds=False, pdcm=False, perf_capabilities=0)  # vmx_set_cpu_caps()
    off = not config.enable_pmu or vm.pmu_off
    # As merged the guest needs the in-kernel local APIC for its PMI; the series did not ask.
    off = off or (int(vm.vpmu) == VPMU_MEDIATED and not vm.irqchip)
    return refreshed(host, attrs.evolve(told, version=0) if off else told, fixed_cap(S, int(vcpu.vm)))


def kvm_pmu_refresh(S: Any, M: np.ndarray[Any, Any], model: CpuModel, k: int) -> None:
    """Give vCPU k the PMU that its CPUID and PERF_CAPABILITIES show, and reset it.

    Its perf events must be released before.
    """
    shape = vcpu_shape(S, model, k)
    vcpu = S.vcpus[k]
    _refresh_registers(S, vcpu, shape)
    if int(S.vms[int(vcpu.vm)].vpmu) == VPMU_MEDIATED:  # the only write that no VM exit brings
        vmcs_write(M, vcpu, GUEST_IA32_PERF_GLOBAL_CTRL=int(vcpu.pmu.global_ctrl))
    recalc_intercepts(S, M, vcpu, shape, model.shape())


def refresh_intercepts(S: Any, M: np.ndarray[Any, Any], model: CpuModel, k: int) -> None:
    """KVM_REQ_RECALC_INTERCEPTS: a new MSR filter."""
    recalc_intercepts(S, M, S.vcpus[k], vcpu_shape(S, model, k), model.shape())


def _refresh_registers(S: Any, vcpu: Any, shape: Shape) -> None:
    pmu = vcpu.pmu
    inject = int(S.cores[0].inject)
    owns_pmu = int(S.vms[int(vcpu.vm)].vpmu) != VPMU_EMULATED
    table = rules("kvm", shape, unchecked_msrs(inject))
    pmu.version = shape.version
    pmu.lazy = int(owns_pmu and shape.version > 0 and int(S.config.switch) == LAZY)
    pmu.nr_arch_gp_counters = shape.gp
    pmu.nr_arch_fixed_counters = shape.fixed
    pmu.width = shape.gp_width
    pmu.counter_bitmask = (1 << shape.gp_width) - 1
    pmu.perf_capabilities = shape.perf_capabilities
    pmu.eventsel_rsvd = table.reserved[ROW["IA32_PERFEVTSEL"]]
    pmu.fixed_ctr_ctrl_rsvd = table.reserved[ROW["IA32_FIXED_CTR_CTRL"]]
    pmu.global_ctrl_rsvd = table.reserved[ROW["IA32_PERF_GLOBAL_CTRL"]]
    pmu.global_status_rsvd = table.reserved[ROW["IA32_PERF_GLOBAL_STATUS_RESET"]]
    pmu.has_ds = int(shape.ds)
    pmu.pebs_enable_rsvd = table.reserved[ROW["IA32_PEBS_ENABLE"]]
    pmu.pebs_enable = pmu.ds_area = pmu.host_cross_mapped_mask = 0
    gp_mask = (1 << shape.gp) - 1
    pmu.all_valid_pmc = gp_mask | ((1 << shape.fixed) - 1) << 32
    pmu.fixed_ctr_ctrl = pmu.fixed_ctr_ctrl_hw = pmu.global_status = 0
    pmu.reprogram_pmi = pmu.incremented_pmc_idx = pmu.pmc_in_use = 0
    pmu.pmc_counting_instructions = pmu.pmc_counting_branches = 0
    # Both vendors enable all GP counters at RESET, so that software for version 1 works. A guest of
    # version 1 has no GLOBAL_CTRL, but the hardware has, and it is loaded with this.
    enabled = (shape.version > 1 or owns_pmu) and not inject & int(I_RESET_TO_0)
    if owns_pmu and int(S.config.quirks) & int(Q_GLOBAL_CTRL_RESET):
        enabled = False
    pmu.global_ctrl = gp_mask if enabled else 0
    # intel_get_fixed_pmc_eventsel() asks perf what it calls them; 6.7 had a table of its own.
    own_table = int(S.config.kernel) < kernel_version(6, 8)
    ref_cycles = 0x0300 if own_table else event_by_name("ref-cycles", LISTS[int(S.config.events)]).code
    eventsels = (0x00C0, 0x003C, ref_cycles, 0x0400)
    for i, pmc in enumerate(pmu.pmcs):
        pmc.counter = pmc.emulated_counter = pmc.eventsel_hw = pmc.current_config = 0
        pmc.is_paused = pmc.intr = pmc.uncounted = 0
        pmc.eventsel = eventsels[i - N_GP_PMC] if i >= N_GP_PMC else 0
    vcpu.msr_n[:] = table.exists_count
    vcpu.msr_reserved[:] = table.reserved
    if int(S.config.kernel) < kernel_version(6, 12):
        vcpu.msr_reserved[ROW["IA32_X2APIC_ICR"]] = 0  # X2APIC_ICR_RESERVED_BITS came then
    vcpu.msr_access[:] = table.access
    if not vcpu.launched:
        vcpu.ia32_misc_enable_msr = table.reset[ROW["IA32_MISC_ENABLE"]]
    vcpu.msr_dropped[:] = [0 if inject & int(I_ABSENT_PERFCTR) else r.kvm.drop_absent for r in MSRS]
