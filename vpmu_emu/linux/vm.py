"""What KVM does when a VMM makes a VM, a vCPU, or gives it its CPUID: record rows, VMCS, MSR bitmap, vPMU.

Plain Python, for nothing here happens while a guest runs. arch/x86/kvm/x86.c, pmu.c, vmx/vmx.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np

from vpmu_emu.linux.cpuid import CAP_FW_WRITES, Leaf, refreshed, told_by
from vpmu_emu.linux.eventfilter import EventFilter
from vpmu_emu.linux.kvm.debugregs import EXCEPTIONS
from vpmu_emu.linux.state import (
    KVM_REQ_PMU,
    N_GP_PMC,
    VCPU,
    VM,
    W_GLOBAL_CTRL_SWITCH,
)
from vpmu_emu.machine.breakpoints import DR6_RESET, DR7_RESET
from vpmu_emu.machine.clock import tsc_value
from vpmu_emu.machine.engine import XCR0_RESET
from vpmu_emu.machine.lapic import BASE_RESET, LVT_MASKED, TIMER_MODE, TIMER_PERIODIC
from vpmu_emu.machine.mutants import I_ABSENT_PERFCTR, I_RESET_TO_0
from vpmu_emu.machine.state import NEVER
from vpmu_emu.tables.cpus import INDEXED, CpuModel
from vpmu_emu.tables.events import LISTS, event_by_name
from vpmu_emu.tables.modes import kernel_version, mode_of
from vpmu_emu.tables.msrs import MSRS, Shape, by_name, rules
from vpmu_emu.tables.mutants import unchecked_msrs
from vpmu_emu.tables.vmcs import control_bit, vmcs_field

PAGE = 4096
VCPU_PAGES = 3  # VMCS, MSR bitmap, MSR lists
CR0_GUEST_BITS = 1 << 3 | 1 << 16  # TS WP
CR4_GUEST_BITS = 0x78E | 1 << 16  # PVI TSD DE PGE PCE OSFXSR OSXMMEXCPT, FSGSBASE
GLOBAL_CTRL = 0x38F
EXIT_LOAD_LIST, ENTRY_LOAD_LIST = 0x400, 0x800  # in the page of MSR lists
ALL_ONES = (1 << 64) - 1
CR0_REAL_MODE = 0x6000_0010  # RESET: CD NW ET
RFLAGS_RESET = 2
CS_RESET, RIP_RESET = 0xF000, 0xFFF0
PAT_RESET = 0x0007_0406_0007_0406
TSC_DEADLINE_TIMER = 1 << 24  # CPUID.1:ECX
_ROW = {row.name: k for k, row in enumerate(MSRS)}


def vmcs_read(M: np.ndarray[Any, Any], vcpu: Any, name: str) -> int:
    """A field of the vCPU's VMCS."""
    at = int(vcpu.vmcs) + vmcs_field(name).offset
    return int.from_bytes(M[at : at + 8].tobytes(), "little")


def vmcs_write(M: np.ndarray[Any, Any], vcpu: Any, **fields: int) -> None:
    """Set fields of the vCPU's VMCS by name."""
    for name, value in fields.items():
        at = int(vcpu.vmcs) + vmcs_field(name).offset
        M[at : at + 8] = np.frombuffer((int(value) & ALL_ONES).to_bytes(8, "little"), dtype=np.uint8)


def _controls(*names: str) -> int:
    return sum(1 << control_bit(name) for name in names)


def kvm_create_vm(S: Any, k: int, mm: int) -> None:
    """Row k becomes a VM of address space `mm`, with no memory, no vCPU and no filter."""
    S.vms[k] = np.zeros((), dtype=VM)
    S.vms[k].used = 1
    S.vms[k].mm = mm
    S.vms[k].created = S.cores[int(S.this_cpu)].t
    S.vms[k].owns_pmu = int(mode_of(S.config).owns_pmu)


def kvm_create_vcpu(S: Any, M: np.ndarray[Any, Any], k: int, vm: int, ident: int, page: int) -> None:
    """Row k becomes vCPU `ident` of a VM as it is after RESET; `page` is where its three pages begin.

    It has no CPUID yet, hence no PMU (kvm_arch_vcpu_create, vmx_vcpu_create, kvm_vcpu_reset).
    """
    S.vcpus[k] = np.zeros((), dtype=VCPU)
    vcpu = S.vcpus[k]
    vcpu.used, vcpu.vm, vcpu.vcpu_id = 1, vm, ident
    vcpu.task = vcpu.cpu = vcpu.user_exit = vcpu.exception = -1
    vcpu.vmcs, vcpu.msr_bitmap, vcpu.msr_lists = (page + n * PAGE for n in range(VCPU_PAGES))
    M[page : page + VCPU_PAGES * PAGE] = 0
    pin = ("PIN_BASED_EXT_INTR_MASK", "PIN_BASED_NMI_EXITING", "PIN_BASED_VIRTUAL_NMIS")
    core = S.cores[int(S.this_cpu)]
    vmcs_write(
        M,
        vcpu,
        PIN_BASED_VM_EXEC_CONTROL=_controls(*pin),
        EXCEPTION_BITMAP=int(EXCEPTIONS),
        GUEST_DR7=int(DR7_RESET),
        MSR_BITMAP=int(vcpu.msr_bitmap),
        # With EPT the guest owns what no longer concerns KVM's page tables (KVM_POSSIBLE_CR*_GUEST_BITS).
        CR0_GUEST_HOST_MASK=~CR0_GUEST_BITS,
        CR4_GUEST_HOST_MASK=~CR4_GUEST_BITS,
        HOST_IA32_PERF_GLOBAL_CTRL=0,  # all counters stop at VM exit
        GUEST_CR0=CR0_REAL_MODE,
        CR0_READ_SHADOW=CR0_REAL_MODE,
        GUEST_RIP=RIP_RESET,
        GUEST_RFLAGS=RFLAGS_RESET,
        GUEST_CS_SELECTOR=CS_RESET,
        GUEST_TR_LIMIT=0xFFFF,
        GUEST_GDTR_LIMIT=0xFFFF,
        GUEST_IDTR_LIMIT=0xFFFF,
    )
    vcpu.dr6, vcpu.dr7 = DR6_RESET, DR7_RESET
    for entry in vcpu.cpuid:
        entry.leaf = entry.subleaf = ALL_ONES
    vapic = vcpu.vapic
    vapic.clock_num, vapic.clock_den = core.vapic.clock_num, core.vapic.clock_den
    vapic.id = ident
    vapic.software, vapic.timer_mode_mask = 1, TIMER_PERIODIC
    vapic.apic_base = int(BASE_RESET) & ~(0 if ident == int(S.vms[vm].bsp_vcpu_id) else 1 << 8)
    vapic.spiv, vapic.timer_at, vapic.dfr = 0xFF, NEVER, 0xFFFF_FFFF
    vapic.lvt[:] = LVT_MASKED
    vcpu.perf_capabilities = CAP_FW_WRITES & int(S.cores[0].pmu.perf_capabilities)
    vcpu.interrupt = -1
    vcpu.pat = PAT_RESET
    vcpu.xcr0 = int(XCR0_RESET)
    vcpu.mp_state = 0
    vcpu.pmu.lbr_event = -1
    for pmc in vcpu.pmu.pmcs:
        pmc.perf_event = -1
    kvm_synchronize_tsc(S, M, k)  # kvm_arch_vcpu_postcreate()


def rdtsc(S: Any) -> int:
    """The host's TSC."""
    core = S.cores[int(S.this_cpu)]
    return tsc_value(core, int(core.t)) + int(core.tsc_adjust) & ALL_ONES


def kvm_synchronize_tsc(S: Any, M: np.ndarray[Any, Any], k: int, user_value: int | None = None) -> None:
    """Set the TSC of vCPU k: to what the VMM writes, or None for a new vCPU.

    A VM has one TSC, which begins at 0. A new vCPU joins it, and so does one whose TSC the VMM sets to 0,
    or to within a second of what it would be: setting it for one vCPU after the other takes time. The first
    value that a VMM writes is literal, but in kernels before 6.8 that rule held for it, too.
    """
    vcpu, khz = S.vcpus[k], int(S.config.tsc_khz)
    vm, now, data = S.vms[int(vcpu.vm)], rdtsc(S), user_value or 0
    expected = int(vm.last_tsc_write) + now - int(vm.last_tsc) & ALL_ONES
    second = 1000 * khz
    near = data < (expected + second & ALL_ONES) and (data + second & ALL_ONES) > expected
    user_set = vm.user_set_tsc or int(S.config.kernel) < kernel_version(6, 8)
    if not vm.last_tsc_khz or (data and not (user_set and near)):
        vm.cur_tsc_offset = data - now & ALL_ONES
    if user_value is not None:
        vm.user_set_tsc = 1
    vm.last_tsc, vm.last_tsc_write, vm.last_tsc_khz = now, data, khz
    vmcs_write(M, vcpu, TSC_OFFSET=int(vm.cur_tsc_offset))


def kvm_set_tsc_offset(S: Any, M: np.ndarray[Any, Any], k: int, offset: int) -> None:
    """KVM_VCPU_TSC_OFFSET: how much more than the host's TSC that of vCPU k is, and of later ones."""
    vcpu = S.vcpus[k]
    vm, now = S.vms[int(vcpu.vm)], rdtsc(S)
    vm.cur_tsc_offset, vm.user_set_tsc = offset, 1
    vm.last_tsc, vm.last_tsc_write, vm.last_tsc_khz = now, now + offset & ALL_ONES, int(S.config.tsc_khz)
    vmcs_write(M, vcpu, TSC_OFFSET=offset)


def kvm_vcpu_after_set_cpuid(
    S: Any, M: np.ndarray[Any, Any], model: CpuModel, k: int, leaves: Sequence[Leaf]
) -> None:
    """KVM_SET_CPUID2: keep the leaves and make the vPMU that they show."""
    vcpu = S.vcpus[k]
    vcpu.n_cpuid = len(leaves)
    for n, entry in enumerate(vcpu.cpuid):
        entry.subleaf = entry.leaf = ALL_ONES
        if n < len(leaves):
            entry.leaf, entry.eax, entry.ebx, entry.ecx, entry.edx = leaves[n]
            if leaves[n][0] in INDEXED:
                entry.subleaf = 0
    deadline = any(leaf == 1 and ecx & TSC_DEADLINE_TIMER for leaf, _, _, ecx, _ in leaves)
    vcpu.vapic.timer_mode_mask = TIMER_MODE if deadline else TIMER_PERIODIC
    kvm_pmu_refresh(S, M, model, k)


def leaves_of(vcpu: Any) -> list[Leaf]:
    """The leaves that KVM_SET_CPUID2 gave."""
    return [
        (int(e.leaf), int(e.eax), int(e.ebx), int(e.ecx), int(e.edx))
        for e in vcpu.cpuid[: int(vcpu.n_cpuid)]
    ]


def vcpu_shape(S: Any, model: CpuModel, k: int) -> Shape:
    """The PMU that vCPU k has by its CPUID, its PERF_CAPABILITIES and what its VM may have."""
    vcpu, vm, config = S.vcpus[k], S.vms[int(S.vcpus[k].vm)], S.config
    host = model.shape()
    told = told_by(host, leaves_of(vcpu), int(vcpu.perf_capabilities) & host.perf_capabilities)
    if vm.owns_pmu:
        told = attrs.evolve(told, ds=False)
    if not config.enable_pmu:
        told = attrs.evolve(told, ds=False, pdcm=False, perf_capabilities=0)  # vmx_set_cpu_caps()
    off = not config.enable_pmu or vm.pmu_off
    # A guest that owns the PMU needs the in-kernel local APIC for its PMI.
    off = off or (vm.owns_pmu and not vm.irqchip)
    return refreshed(host, attrs.evolve(told, version=0) if off else told, int(config.fixed_cap))


def kvm_pmu_refresh(S: Any, M: np.ndarray[Any, Any], model: CpuModel, k: int) -> None:
    """Give vCPU k the PMU that its CPUID and PERF_CAPABILITIES show, and reset it.

    Its perf events must be released before.
    """
    shape = vcpu_shape(S, model, k)
    _refresh_registers(S, S.vcpus[k], shape)
    _refresh_controls(S, M, S.vcpus[k], shape)


def refresh_intercepts(S: Any, M: np.ndarray[Any, Any], model: CpuModel, k: int) -> None:
    """KVM_REQ_RECALC_INTERCEPTS: a new MSR filter."""
    _refresh_controls(S, M, S.vcpus[k], vcpu_shape(S, model, k))


def _refresh_registers(S: Any, vcpu: Any, shape: Shape) -> None:
    pmu = vcpu.pmu
    inject = int(S.cores[0].inject)
    owns_pmu = bool(S.vms[int(vcpu.vm)].owns_pmu)
    table = rules("kvm", shape, unchecked_msrs(inject))
    pmu.version = shape.version
    pmu.nr_arch_gp_counters = shape.gp
    pmu.nr_arch_fixed_counters = shape.fixed
    pmu.width = shape.gp_width
    pmu.counter_bitmask = (1 << shape.gp_width) - 1
    pmu.perf_capabilities = shape.perf_capabilities
    pmu.eventsel_rsvd = table.reserved[_ROW["IA32_PERFEVTSEL"]]
    pmu.fixed_ctr_ctrl_rsvd = table.reserved[_ROW["IA32_FIXED_CTR_CTRL"]]
    pmu.global_ctrl_rsvd = table.reserved[_ROW["IA32_PERF_GLOBAL_CTRL"]]
    pmu.global_status_rsvd = table.reserved[_ROW["IA32_PERF_GLOBAL_STATUS_RESET"]]
    pmu.has_ds = int(shape.ds)
    pmu.pebs_enable_rsvd = table.reserved[_ROW["IA32_PEBS_ENABLE"]]
    pmu.pebs_enable = pmu.ds_area = pmu.host_cross_mapped_mask = 0
    gp_mask = (1 << shape.gp) - 1
    pmu.all_valid_pmc = gp_mask | ((1 << shape.fixed) - 1) << 32
    pmu.fixed_ctr_ctrl = pmu.fixed_ctr_ctrl_hw = pmu.global_status = 0
    pmu.reprogram_pmi = pmu.incremented_pmc_idx = pmu.pmc_in_use = 0
    pmu.pmc_counting_instructions = pmu.pmc_counting_branches = 0
    # Both vendors enable all GP counters at RESET, so that software for version 1 works. A guest of
    # version 1 has no GLOBAL_CTRL, but the hardware has, and it is loaded with this.
    enabled = (shape.version > 1 or owns_pmu) and not inject & int(I_RESET_TO_0)
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
        vcpu.msr_reserved[_ROW["IA32_X2APIC_ICR"]] = 0  # X2APIC_ICR_RESERVED_BITS came then
    vcpu.msr_access[:] = table.access
    if not vcpu.launched:
        vcpu.ia32_misc_enable_msr = table.reset[_ROW["IA32_MISC_ENABLE"]]
    vcpu.msr_dropped[:] = [0 if inject & int(I_ABSENT_PERFCTR) else r.kvm.drop_absent for r in MSRS]


def _refresh_controls(S: Any, M: np.ndarray[Any, Any], vcpu: Any, shape: Shape) -> None:
    """VM-execution, exit and entry controls, MSR lists and MSR bitmap for this vPMU."""
    config = S.config
    owns_pmu = bool(S.vms[int(vcpu.vm)].owns_pmu) and shape.version > 0
    own_switch = owns_pmu and not int(config.without) & int(W_GLOBAL_CTRL_SWITCH)
    proc = [
        "CPU_BASED_USE_TSC_OFFSETTING",
        "CPU_BASED_HLT_EXITING",
        "CPU_BASED_UNCOND_IO_EXITING",
        "CPU_BASED_USE_MSR_BITMAPS",
        "CPU_BASED_MOV_DR_EXITING",
    ]
    if not owns_pmu:
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
        "CPU_BASED_VM_EXEC_CONTROL": _controls(*proc),
        "VM_EXIT_CONTROLS": _controls(*exit_controls),
        "VM_ENTRY_CONTROLS": _controls(*entry_controls),
    }
    lists = (
        ("VM_EXIT_MSR_STORE", 0, own_switch and not config.save_global_ctrl),
        ("VM_EXIT_MSR_LOAD", EXIT_LOAD_LIST, own_switch and not config.load_global_ctrl),
        ("VM_ENTRY_MSR_LOAD", ENTRY_LOAD_LIST, own_switch and not config.load_global_ctrl),
    )
    for name, offset, used in lists:
        at = int(vcpu.msr_lists) + offset
        M[at : at + 4] = np.frombuffer(GLOBAL_CTRL.to_bytes(4, "little"), dtype=np.uint8)
        fields |= {f"{name}_ADDR": at, f"{name}_COUNT": int(used)}
    vmcs_write(M, vcpu, **fields)
    page = M[int(vcpu.msr_bitmap) : int(vcpu.msr_bitmap) + PAGE]
    page[:] = 0xFF
    vm = S.vms[int(vcpu.vm)]
    for index, reads, writes in _passed(S, shape, owns_pmu):
        at = index & 0x1FFF
        half = 0x400 if index >= 0xC000_0000 else 0
        for used, base, kind in ((reads, half, 1), (writes, 0x800 + half, 2)):
            if used and msr_allowed(M, vm, index, kind):
                page[base + at // 8] &= 0xFF ^ (1 << at % 8)
    vcpu.pmu.lbr_passthrough = 0  # until the next entry
    vcpu.recalc_intercepts = 1  # those of the local APIC: vmx_update_msr_bitmap_x2apic()


def _passed(S: Any, shape: Shape, owns_pmu: bool) -> list[tuple[int, bool, bool]]:
    """(MSR, reads pass, writes pass): the intercept rule of every mode; docs/modes.md says why."""
    named = (
        "IA32_FS_BASE", "IA32_GS_BASE", "IA32_KERNEL_GS_BASE",
        "IA32_SYSENTER_CS", "IA32_SYSENTER_ESP", "IA32_SYSENTER_EIP",
    )  # fmt: skip
    found = [(by_name(name), True, True) for name in named]
    found.append((by_name("IA32_TIME_STAMP_COUNTER"), True, False))
    if not owns_pmu:
        return found
    every = []
    for i in range(shape.gp):  # patch 17
        every.append(0xC1 + i)
        if shape.perf_capabilities & CAP_FW_WRITES:  # patch 18
            every.append(0x4C1 + i)
        if S.config.all_passthrough:
            every.append(0x186 + i)
    every += [0x309 + i for i in range(shape.fixed)]
    if shape.version > 1:
        every += [0x38E, GLOBAL_CTRL, 0x390]
        if S.config.all_passthrough:
            every.append(0x38D)
    return found + [(index, True, True) for index in every]


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
    if not vm.msr_filter or 0x800 <= index <= 0x8FF:
        return True
    for k in range(int(vm.msr_filter_n)):
        at = int(vm.msr_filter) + FILTER_ENTRY * k
        flags, nmsrs, base = (int(v) for v in M[at : at + 12].view("<u4"))
        if flags & kind and base <= index < base + nmsrs:
            n = index - base
            return bool(M[int(vm.msr_filter) + PAGE + FILTER_BITMAP * k + n // 8] >> n % 8 & 1)
    return bool(vm.msr_filter_allow)


def set_event_filter(S: Any, event_filter: EventFilter | None, k: int = 0) -> None:
    """KVM_SET_PMU_EVENT_FILTER on VM k: have every counter looked at again before the next entry."""
    vm = S.vms[k]
    vm.events[:] = 0
    vm.filter_on = int(event_filter is not None)
    vm.nr_includes = vm.nr_excludes = vm.action = 0
    vm.fixed_counter_bitmap = 0
    if event_filter is not None:
        entries = event_filter.includes + event_filter.excludes
        vm.action = event_filter.action
        vm.fixed_counter_bitmap = event_filter.fixed_counter_bitmap
        vm.nr_includes = len(event_filter.includes)
        vm.nr_excludes = len(event_filter.excludes)
        vm.events[: len(entries)] = entries
    for vcpu in S.vcpus:
        if vcpu.used and int(vcpu.vm) == k and vcpu.pmu.version:
            vcpu.pmu.reprogram_pmi = ALL_ONES
            vcpu.requests |= KVM_REQ_PMU
