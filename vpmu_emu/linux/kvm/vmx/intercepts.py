"""What a guest exits for: VM-execution controls, MSR lists and MSR bitmap, by its vPMU and the MSR filter.

vmx/vmx.c vmx_recalc_intercepts(), intel_passthrough_pmu_msrs().
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vpmu_emu.linux.kvm.vmx.vmcs import (
    ENTRY_LOAD_LIST,
    EXIT_LOAD_LIST,
    MSR_CORE_PERF_GLOBAL_CTRL,
    PAGE,
    controls,
    vmcs_write,
)
from vpmu_emu.linux.state import W_GLOBAL_CTRL_SWITCH
from vpmu_emu.machine.lapic import APIC_BASE_MSR, APIC_LAST_MSR
from vpmu_emu.tables.msrs import Shape
from vpmu_emu.tables.passed import VPMUS, Met, passed_msrs, rdpmc_passes


def recalc_intercepts(S: Any, M: np.ndarray[Any, Any], vcpu: Any, shape: Shape, host: Shape) -> None:
    """VM-execution, exit and entry controls, MSR lists and MSR bitmap for this vPMU.

    What passes stands in isa/msrs.toml; the parts of the local APIC and of branch records follow at the
    next entry (vmx_update_msr_bitmap_x2apic, vmx_passthrough_lbr_msrs).
    """
    config = S.config
    vpmu = VPMUS[int(S.vms[int(vcpu.vm)].owns_pmu)]
    met = Met(guest=shape, host=host, all_passthrough=bool(config.all_passthrough))
    owns_pmu = bool(S.vms[int(vcpu.vm)].owns_pmu) and shape.version > 0
    own_switch = owns_pmu and not int(config.without) & int(W_GLOBAL_CTRL_SWITCH)
    proc = [
        "CPU_BASED_USE_TSC_OFFSETTING",
        "CPU_BASED_HLT_EXITING",
        "CPU_BASED_UNCOND_IO_EXITING",
        "CPU_BASED_USE_MSR_BITMAPS",
        "CPU_BASED_MOV_DR_EXITING",
    ]
    if not rdpmc_passes(vpmu, met):
        proc.append("CPU_BASED_RDPMC_EXITING")
    exit_controls = [
        "VM_EXIT_SAVE_DEBUG_CONTROLS",
        "VM_EXIT_HOST_ADDR_SPACE_SIZE",
        "VM_EXIT_ACK_INTR_ON_EXIT",
    ]
    entry_controls = ["VM_ENTRY_LOAD_DEBUG_CONTROLS", "VM_ENTRY_IA32E_MODE"]
    if own_switch and config.load_global_ctrl:
        exit_controls.append("VM_EXIT_LOAD_IA32_PERF_GLOBAL_CTRL")
        entry_controls.append("VM_ENTRY_LOAD_IA32_PERF_GLOBAL_CTRL")
    if own_switch and config.save_global_ctrl:
        exit_controls.append("VM_EXIT_SAVE_IA32_PERF_GLOBAL_CTRL")
    fields = {
        "CPU_BASED_VM_EXEC_CONTROL": controls(*proc),
        "VM_EXIT_CONTROLS": controls(*exit_controls),
        "VM_ENTRY_CONTROLS": controls(*entry_controls),
    }
    lists = (
        ("VM_EXIT_MSR_STORE", 0, own_switch and not config.save_global_ctrl),
        ("VM_EXIT_MSR_LOAD", EXIT_LOAD_LIST, own_switch and not config.load_global_ctrl),
        ("VM_ENTRY_MSR_LOAD", ENTRY_LOAD_LIST, own_switch and not config.load_global_ctrl),
    )
    for name, offset, used in lists:
        at = int(vcpu.msr_lists) + offset
        M[at : at + 4] = np.frombuffer(MSR_CORE_PERF_GLOBAL_CTRL.to_bytes(4, "little"), dtype=np.uint8)
        fields |= {f"{name}_ADDR": at, f"{name}_COUNT": int(used)}
    vmcs_write(M, vcpu, **fields)
    page = M[int(vcpu.msr_bitmap) : int(vcpu.msr_bitmap) + PAGE]
    page[:] = 0xFF
    vm = S.vms[int(vcpu.vm)]
    for index, reads, writes in passed_msrs(vpmu, met):
        at = index & 0x1FFF
        half = 0x400 if index >= 0xC000_0000 else 0
        for used, base, kind in ((reads, half, 1), (writes, 0x800 + half, 2)):
            if used and msr_allowed(M, vm, index, kind):
                page[base + at // 8] &= 0xFF ^ (1 << at % 8)
    vcpu.pmu.lbr_passthrough = 0  # until the next entry
    vcpu.recalc_intercepts = 1  # those of the local APIC: vmx_update_msr_bitmap_x2apic()


MSR_FILTER_PAGES = 7  # the ranges, then 16 bitmaps of KVM_MSR_FILTER_MAX_BITMAP_SIZE bytes
FILTER_ENTRY, FILTER_BITMAP = 16, 0x600


def set_msr_filter(
    M: np.ndarray[Any, Any], vm: Any, allow: bool, ranges: Sequence[tuple[int, int, int, bytes]]
) -> None:
    """Write a filter of (flags, nmsrs, base, bitmap) to the VM's pages for it (KVM_X86_SET_MSR_FILTER)."""
    vm.msr_filter_n, vm.msr_filter_allow = len(ranges), int(allow)
    for k, (flags, nmsrs, base, bitmap) in enumerate(ranges):
        at = int(vm.msr_filter) + FILTER_ENTRY * k
        M[at : at + 12] = np.array((flags, nmsrs, base), dtype="<u4").view(np.uint8)
        at = int(vm.msr_filter) + PAGE + FILTER_BITMAP * k
        M[at : at + len(bitmap)] = np.frombuffer(bitmap, dtype=np.uint8)


def msr_allowed(M: np.ndarray[Any, Any], vm: Any, index: int, kind: int) -> bool:
    """kvm_msr_allowed(): whether the filter lets the guest read (1) or write (2) an MSR."""
    if not vm.msr_filter or int(APIC_BASE_MSR) <= index <= int(APIC_LAST_MSR):
        return True
    for k in range(int(vm.msr_filter_n)):
        at = int(vm.msr_filter) + FILTER_ENTRY * k
        flags, nmsrs, base = (int(v) for v in M[at : at + 12].view("<u4"))
        if flags & kind and base <= index < base + nmsrs:
            n = index - base
            return bool(M[int(vm.msr_filter) + PAGE + FILTER_BITMAP * k + n // 8] >> n % 8 & 1)
    return bool(vm.msr_filter_allow)
