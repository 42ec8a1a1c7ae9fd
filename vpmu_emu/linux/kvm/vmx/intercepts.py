"""What a guest exits for: VM-execution controls, MSR lists and MSR bitmap, by its vPMU and the MSR filter.

vmx/vmx.c vmx_recalc_intercepts(), vmx_recalc_pmu_msr_intercepts(), intel_passthrough_pmu_msrs().
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import numpy as np

from vpmu_emu.linux.kvm.vmx.first_touch import note_first_touch
from vpmu_emu.linux.kvm.vmx.vmcs import (
    ENTRY_LOAD_LIST,
    EXIT_LOAD_LIST,
    MSR_CORE_PERF_GLOBAL_CTRL,
    PAGE,
    controls,
    vmcs_write,
)
from vpmu_emu.linux.patches import LOAD_GLOBAL_CTRL, WHITELIST
from vpmu_emu.linux.printk import LOG_INVALID_MSR, say
from vpmu_emu.linux.state import Q_INTERCEPTS_ONCE, VPMU_EMULATED
from vpmu_emu.machine.lapic import APIC_BASE_MSR, APIC_LAST_MSR
from vpmu_emu.machine.msr import MSR_HIGH
from vpmu_emu.machine.vmx import BITMAP_HIGH, BITMAP_WRITE
from vpmu_emu.tables.modes import VPMUS
from vpmu_emu.tables.msrs import Shape
from vpmu_emu.tables.passed import Met, passed_msrs, pmu_msrs, rdpmc_passes


def recalc_intercepts(S: Any, M: np.ndarray[Any, Any], vcpu: Any, shape: Shape, host: Shape) -> None:
    """VM-execution, exit and entry controls, MSR lists and MSR bitmap for this vPMU.

    What passes stands in isa/msrs.toml; the parts of the local APIC and of branch records follow at the
    next entry (vmx_update_msr_bitmap_x2apic, vmx_passthrough_lbr_msrs).
    """
    config = S.config
    vpmu = VPMUS[int(S.vms[int(vcpu.vm)].vpmu)]
    all_passthrough, without = bool(config.all_passthrough), int(config.without)
    met = Met(
        guest=shape, host=host, all_passthrough=all_passthrough, without=without, lazy=bool(vcpu.pmu.lazy)
    )
    owns_pmu = int(S.vms[int(vcpu.vm)].vpmu) != VPMU_EMULATED and shape.version > 0 and not met.lazy
    own_switch = owns_pmu and not without & int(LOAD_GLOBAL_CTRL)
    fields = _controls(config, vpmu, met, own_switch)
    if own_switch:
        fields["HOST_IA32_PERF_GLOBAL_CTRL"] = 0  # a vPMU that perf has may have run before
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
    before = page.copy()
    page[:] = 0xFF
    passed = passed_msrs(vpmu, met)
    for base, bit in _places(S, M, vcpu, passed):
        page[base] &= 0xFF ^ bit
    if owns_pmu:
        _of_the_series(S, vcpu, page, before, passed)
    if met.lazy:
        then = attrs.evolve(met, lazy=False)
        places = _places(S, M, vcpu, passed_msrs(vpmu, then))
        bits = [8 * base + bit.bit_length() - 1 for base, bit in places]
        note_first_touch(M, vcpu, _controls(config, vpmu, then, True), bits)
    vcpu.pmu.lbr_passthrough = 0  # until the next entry
    vcpu.recalc_intercepts = 1  # those of the local APIC: vmx_update_msr_bitmap_x2apic()


def _controls(config: Any, vpmu: str, met: Met, own_switch: bool) -> dict[str, int]:
    """The controls; `own_switch`: GLOBAL_CTRL is the guest's from entry to exit."""
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
    return {
        "CPU_BASED_VM_EXEC_CONTROL": controls(*proc),
        "VM_EXIT_CONTROLS": controls(*exit_controls),
        "VM_ENTRY_CONTROLS": controls(*entry_controls),
    }


def _places(
    S: Any, M: np.ndarray[Any, Any], vcpu: Any, passed: Sequence[tuple[int, bool, bool]]
) -> Iterator[tuple[int, int]]:
    """Byte and bit in the bitmap of what passes and the VMM does not deny."""
    vm = S.vms[int(vcpu.vm)]
    for index, reads, writes in passed:
        for used, kind in ((reads, 1), (writes, 2)):
            if used and msr_allowed(M, vm, index, kind):
                yield _place(index, kind)


def _place(index: int, kind: int) -> tuple[int, int]:
    """Byte and bit of an MSR in the bitmap, for reads (1) or writes (2)."""
    high = index >= int(MSR_HIGH)
    at = index - int(MSR_HIGH) * high
    return at // 8 + int(BITMAP_HIGH) * high + int(BITMAP_WRITE) * (kind == 2), 1 << at % 8


def _of_the_series(
    S: Any, vcpu: Any, page: Any, before: Any, passed: Sequence[tuple[int, bool, bool]]
) -> None:
    """What version 1 got wrong in the bitmap, and what it says of MSRs that it was not told may pass."""
    config = S.config
    own = pmu_msrs()
    if int(config.without) & int(WHITELIST):
        for index in sorted({index for index, *_ in passed} & set(own)):
            say(S, LOG_INVALID_MSR, index)
    if int(config.quirks) & int(Q_INTERCEPTS_ONCE) and vcpu.n_cpuid and before.any():
        for index in own:
            for kind in (1, 2):
                base, bit = _place(index, kind)
                page[base] &= before[base] | 0xFF ^ bit


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
