"""What KVM does when a VMM makes a VM, makes a vCPU, gives it its CPUID, its TSC or an event filter.

Plain Python, for nothing here happens while a guest runs. arch/x86/kvm/x86.c, pmu.c, vmx/vmx.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np

from vpmu_emu.linux import patches
from vpmu_emu.linux.kvm.cpuid import Leaf, supported_perf_cap
from vpmu_emu.linux.kvm.eventfilter import EventFilter
from vpmu_emu.linux.kvm.module import NO_VPMU
from vpmu_emu.linux.kvm.refresh import few_caps, kvm_pmu_refresh
from vpmu_emu.linux.kvm.vmx.debugregs import EXCEPTIONS
from vpmu_emu.linux.kvm.vmx.registers import CR0_REAL_MODE, CS_RESET, RIP_RESET
from vpmu_emu.linux.kvm.vmx.vmcs import (
    ALL_ONES,
    PAGE,
    controls,
    vmcs_write,
)
from vpmu_emu.linux.state import (
    KVM_REQ_PMU,
    VCPU,
    VM,
    VPMU_EMULATED,
)
from vpmu_emu.machine import msr_index
from vpmu_emu.machine.breakpoints import DR6_RESET, DR7_RESET
from vpmu_emu.machine.clock import tsc_value
from vpmu_emu.machine.engine import XCR0_RESET
from vpmu_emu.machine.lapic import BASE_RESET
from vpmu_emu.machine.processor_flags import (
    X86_CR0_TS,
    X86_CR0_WP,
    X86_CR4_DE,
    X86_CR4_FSGSBASE,
    X86_CR4_OSFXSR,
    X86_CR4_OSXMMEXCPT,
    X86_CR4_PCE,
    X86_CR4_PGE,
    X86_CR4_PVI,
    X86_CR4_TSD,
)
from vpmu_emu.machine.state import NEVER
from vpmu_emu.tables.cpus import INDEXED, CpuModel
from vpmu_emu.tables.modes import VPMUS, kernel_version, mode_of
from vpmu_emu.tables.msrs import reset_of

VCPU_PAGES = 3  # VMCS, MSR bitmap, MSR lists
CR0_GUEST_BITS = int(X86_CR0_TS | X86_CR0_WP)
CR4_GUEST_BITS = int(
    X86_CR4_PVI | X86_CR4_TSD | X86_CR4_DE | X86_CR4_PGE | X86_CR4_PCE | X86_CR4_OSFXSR
    | X86_CR4_OSXMMEXCPT | X86_CR4_FSGSBASE
)  # fmt: skip
RFLAGS_RESET = 2
PAT_RESET = reset_of("IA32_PAT")
TSC_DEADLINE_TIMER = 1 << 24  # CPUID.1:ECX


def kvm_create_vm(S: Any, k: int, mm: int, vpmu: int = -1) -> None:
    """Row k becomes a VM of address space `mm`, with no memory, no vCPU and no filter.

    Its vPMU is `vpmu`: VPMU_*, NO_VPMU, or -1 for the one that KVM was loaded for.
    """
    S.vms[k] = np.zeros((), dtype=VM)
    S.vms[k].used = 1
    S.vms[k].mm = mm
    S.vms[k].created = S.cores[int(S.this_cpu)].t
    # pmu->passthrough, and who asks for it
    off = int(S.config.without) & int(patches.VCPU | patches.PREDICATE)
    S.vms[k].vpmu = VPMU_EMULATED if off else VPMUS.index(mode_of(S.config).vpmu)
    if vpmu >= 0:
        S.vms[k].vpmu = VPMU_EMULATED if vpmu == NO_VPMU else vpmu
        S.vms[k].pmu_off = int(vpmu == NO_VPMU)


def kvm_create_vcpu(
    S: Any, M: np.ndarray[Any, Any], model: CpuModel, k: int, vm: int, ident: int, page: int
) -> None:
    """Row k becomes vCPU `ident` of a VM as it is after RESET; `page` is where its three pages begin.

    It has no CPUID yet, hence no PMU (kvm_arch_vcpu_create, vmx_vcpu_create, kvm_vcpu_reset).
    """
    S.vcpus[k] = np.zeros((), dtype=VCPU)
    vcpu = S.vcpus[k]
    vcpu.used, vcpu.vm, vcpu.vcpu_idx, vcpu.vcpu_id = 1, vm, k, ident
    vcpu.task = vcpu.cpu = vcpu.user_exit = vcpu.exception = -1
    vcpu.vmcs, vcpu.msr_bitmap, vcpu.msr_lists = (page + n * PAGE for n in range(VCPU_PAGES))
    M[page : page + VCPU_PAGES * PAGE] = 0
    pin = ("PIN_BASED_EXT_INTR_MASK", "PIN_BASED_NMI_EXITING", "PIN_BASED_VIRTUAL_NMIS")
    core = S.cores[int(S.this_cpu)]
    vmcs_write(
        M,
        vcpu,
        PIN_BASED_VM_EXEC_CONTROL=controls(*pin),
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
    vapic.software, vapic.timer_mode_mask = 1, msr_index.APIC_LVT_TIMER_PERIODIC
    vapic.apic_base = int(BASE_RESET) & ~(0 if ident == int(S.vms[vm].bsp_vcpu_id) else 1 << 8)
    vapic.spiv, vapic.timer_at, vapic.dfr = 0xFF, NEVER, 0xFFFF_FFFF
    vapic.lvt[:] = msr_index.APIC_LVT_MASKED
    mode = attrs.evolve(mode_of(S.config), caps=few_caps(S, vm))
    vcpu.perf_capabilities = supported_perf_cap(model, mode)
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
    vcpu.vapic.timer_mode_mask = (
        msr_index.APIC_LVT_TIMER_MASK if deadline else msr_index.APIC_LVT_TIMER_PERIODIC
    )
    kvm_pmu_refresh(S, M, model, k)


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
