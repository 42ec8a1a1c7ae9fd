"""Makes the host kernel's part of a SYSTEM record, in plain Python, before anything compiled runs.

What KVM and perf would do at module load, KVM_CREATE_VM, KVM_SET_CPUID2 and perf_event_open.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from vpmu_emu.errors import ConfigError, HostError
from vpmu_emu.linux.eventfilter import EventFilter, load_filter
from vpmu_emu.linux.hostevents import HostEvent, parse_host_events
from vpmu_emu.linux.perf.report import (
    closed_report,
    error_report,
    event_count,
    hardware_counters,
    perf_report,
)
from vpmu_emu.linux.perf.x86 import MAX_PERIOD
from vpmu_emu.linux.state import (
    CTX_TASK,
    KVM_REQ_PMU,
    MODE_NAMES,
    MODE_PASSTHROUGH,
    N_EVENTS,
    N_FIXED_PMC,
    N_GP_PMC,
    N_PMC,
    OWNER_HOST,
    PERF_EVENT_STATE_INACTIVE,
    PERF_TYPE_RAW,
    QUIRKS,
    SYSTEM,
    W_GLOBAL_CTRL_SWITCH,
    WITHOUT,
    bits,
)
from vpmu_emu.linux.watchdog import lockup_detector_init, lockup_report
from vpmu_emu.machine.engine import CR0_RESET, CR4_RESET
from vpmu_emu.machine.interrupts import VECTOR_DB, VECTOR_UD
from vpmu_emu.machine.lapic import (
    BASE_RESET,
    BASE_X2APIC,
    LVT_MASKED,
    LVT_PMI,
    LVT_TIMER,
    MODE_NMI,
    SPIV_ENABLE,
    TIMER_TSC_DEADLINE,
)
from vpmu_emu.machine.mutants import I_ABSENT_PERFCTR, I_RESET_TO_0
from vpmu_emu.machine.state import NEVER
from vpmu_emu.machine.u64 import U64
from vpmu_emu.tables.cpus import COST_NAMES, CpuModel, cpuid_leaves, cpuid_pmu
from vpmu_emu.tables.msrs import MSRS, Shape, by_name, rules
from vpmu_emu.tables.mutants import unchecked_msrs
from vpmu_emu.tables.vmcs import control_bit, vmcs_field

HZ = 250
SLICE_US = 2800  # sysctl_sched_base_slice of a machine with 8 CPUs or more, in microseconds
QUANTUM = 1000 * 16  # how far one core may be ahead of another, in 1/16 cycle
LOCAL_TIMER_VECTOR = 0xEC
PAGE = 4096
CR0_GUEST_BITS = 1 << 3 | 1 << 16  # TS WP
CR4_GUEST_BITS = 0x78E | 1 << 16  # PVI TSD DE PGE PCE OSFXSR OSXMMEXCPT, FSGSBASE
HOST_PAGES = 3 * PAGE  # of physical memory that a VM needs above its guest's RAM
CAP_FW_WRITES = 1 << 13
NOT_FOR_GUESTS = {"arch_lbr", "ds"}  # CPUID features: no branch records and no PEBS
GLOBAL_CTRL = 0x38F
KVM_PMU_VERSION = 2
HYPERVISOR = 1 << 31  # CPUID.1:ECX
EXIT_LOAD_LIST, ENTRY_LOAD_LIST = 0x400, 0x800  # in the page of MSR lists
COST_LEVELS = ("low", "typical", "high")
KVM_KEYS = ("fixed_cap", "force_emulation_prefix")
GUEST_KEYS = {
    "version": 255, "gp": N_GP_PMC, "fixed": N_FIXED_PMC, "width": 48, "perf_caps": 1 << 18,
    "events_length": 255, "events_absent": (1 << 32) - 1,
}  # fmt: skip


def new_record() -> np.recarray[Any, Any]:
    """A SYSTEM record, all zero; keep the array and use its element 0."""
    return np.zeros(1, dtype=SYSTEM).view(np.recarray)


def chosen_bits(key: str, table: Mapping[str, str], names: Iterable[str]) -> U64:
    """The bit set of names given by the user.

    Raises:
        ConfigError: a name that the table does not have.
    """
    names = list(names)
    for name in names:
        if name not in table:
            raise ConfigError(key, f"no {key} is named {name!r}", " ".join(table))
    return bits(dict(table), *names)


def guest_cpuid_shape(host: Shape, settings: Mapping[str, int], fixed_cap: int = 3) -> Shape:
    """The PMU that a guest's CPUID shows: KVM_GET_SUPPORTED_CPUID, as the VMM changes it.

    KVM stores what the VMM says and does not make it smaller; `guest_shape` is what the guest gets.

    Args:
        host: shape of the CPU.
        settings: version, gp, fixed, width, perf_caps (also spelled pmu.gp and so on); events_length and
            events_absent do not change the shape.
        fixed_cap: KVM_MAX_NR_INTEL_FIXED_COUNTERS, 3 as merged, 4 later.

    Raises:
        ConfigError: an unknown key or a value that no VMM could set.
    """
    asked: dict[str, int] = {}
    for key, value in settings.items():
        short = key.removeprefix("pmu.")
        if short not in GUEST_KEYS:
            raise ConfigError(f"guest {key}", "unknown key", " ".join(f"pmu.{k}" for k in GUEST_KEYS))
        if not 0 <= value <= GUEST_KEYS[short]:
            raise ConfigError(f"guest {key}", f"{value} is out of range", f"0 to {GUEST_KEYS[short]}")
        asked[short] = value
    if fixed_cap not in (3, 4):
        raise ConfigError("kvm fixed_cap", f"{fixed_cap} is not a cap that KVM has had", "3 4")
    caps = asked.get("perf_caps", host.perf_capabilities & CAP_FW_WRITES)
    if caps & ~(host.perf_capabilities & CAP_FW_WRITES):
        raise ConfigError("guest pmu.perf_caps", f"{caps:#x} is not supported (EINVAL)", "0 0x2000")
    # kvm_init_pmu_capability(): version 2 at most.
    version = asked.get("version", min(host.version, KVM_PMU_VERSION))
    return attrs.evolve(
        host,
        version=version,
        gp=asked.get("gp", min(host.gp, N_GP_PMC)),
        gp_width=asked.get("width", host.gp_width),
        fixed=asked.get("fixed", min(host.fixed, fixed_cap)),
        fixed_width=asked.get("width", host.fixed_width),
        perf_capabilities=caps if version else 0,
        arch_lbr=False,
        ds=False,
        # __do_cpuid_func() sets EDX[15] whatever the CPU says.
        anythread_deprecated=version > 0,
    )


def guest_shape(host: Shape, settings: Mapping[str, int], fixed_cap: int = 3) -> Shape:
    """The PMU that KVM gives to a guest: what its CPUID shows, at most what host and KVM have.

    Arguments and errors are those of `guest_cpuid_shape`.
    """
    told = guest_cpuid_shape(host, settings, fixed_cap)
    version = min(told.version, host.version, KVM_PMU_VERSION)
    return attrs.evolve(
        told,
        version=version,
        gp=min(told.gp, host.gp, N_GP_PMC) if version else 0,
        gp_width=min(told.gp_width, host.gp_width),
        fixed=min(told.fixed, host.fixed, fixed_cap) if version > 1 else 0,
        fixed_width=min(told.fixed_width, host.fixed_width),
        perf_capabilities=told.perf_capabilities if version else 0,
        pdcm=told.pdcm and version > 0,
        anythread_deprecated=version > 0,
    )


def init_config(
    S: Any,
    model: CpuModel,
    mode: str,
    *,
    quirks: Iterable[str] = (),
    without: Iterable[str] = (),
    all_passthrough: bool = False,
    apicv: bool = True,
    costs: str = "typical",
    n_cores: int = 1,
) -> None:
    """Fill `S.config`.

    Raises:
        ConfigError: an unknown mode, name or level.
    """
    if mode not in MODE_NAMES:
        raise ConfigError("vpmu", f"no mode of KVM is named {mode!r}", " ".join(("bare", *MODE_NAMES)))
    if costs not in COST_LEVELS:
        raise ConfigError("costs", f"no level is named {costs!r}", " ".join(COST_LEVELS))
    config = S.config
    config.mode = MODE_NAMES.index(mode)
    config.quirks = chosen_bits("quirk", QUIRKS, quirks)
    config.without = chosen_bits("without", WITHOUT, without)
    config.all_passthrough = int(all_passthrough)
    config.apicv = int(apicv)
    config.load_global_ctrl = 1
    config.save_global_ctrl = int("save_perf_global_ctrl" in model.features)
    config.tsc_khz = model.tsc_khz
    config.cyc2ns_mul = (1_000_000 << 31) // model.tsc_khz
    config.tick_interval = model.tsc_khz * 1000 // HZ * 16
    config.mux_interval = config.tick_interval  # PERF_CPU_HRTIMER: 1000 / HZ ms
    config.max_samples_per_tick = 100_000 // HZ
    config.n_cores = n_cores
    config.quantum = QUANTUM
    config.sched_slice = model.tsc_khz * SLICE_US // 1000 * 16
    level = COST_LEVELS.index(costs)
    for k, name in enumerate(COST_NAMES):
        cost = model.cost(name)
        config.costs[k] = (cost.cycles[level], cost.instructions, cost.branches)


def init_host(S: Any, model: CpuModel) -> None:
    """Fill `S.percpu` and the cores' local APICs as a booted Linux has them."""
    for cpu, (core, host) in enumerate(zip(S.cores, S.percpu, strict=True)):
        for field in ("event_list", "assign", "events", "last_event"):
            host[field][:] = -1
        host.intel_ctrl = (1 << model.gp) - 1 | ((1 << model.fixed) - 1) << 32
        host.enabled = 1
        host.curr = host.vcpu = host.task_ctx = -1
        host.online = int(cpu < S.config.n_cores)
        host.mux_at = host.tick_at = host.clock_at = host.timer_at = NEVER
        host.watchdog_at = NEVER
        lapic = core.lapic
        lapic.apic_base = BASE_RESET | BASE_X2APIC
        lapic.spiv = SPIV_ENABLE | U64(0xFF)
        lapic.lvt[LVT_TIMER] = U64(LOCAL_TIMER_VECTOR) | TIMER_TSC_DEADLINE
        lapic.lvt[LVT_PMI] = MODE_NMI
        lapic.timer_at = NEVER
        core.pmu.global_ctrl = host.intel_ctrl
        core.vmx.root = 1  # KVM is loaded: VMXON
    for event in S.perf_events:
        event.idx = event.leader = event.pmc = event.spec = event.parent = event.vcpu = event.cpu = -1
    for task in S.tasks:
        task.on_cpu = task.vcpu = -1
        task.wake_at = NEVER
    for vcpu in S.vcpus:
        vcpu.task = vcpu.cpu = vcpu.user_exit = vcpu.exception = -1
    S.this_vcpu = S.this_vm = 0


def add_host_events(S: Any, events: Sequence[HostEvent]) -> None:
    """Make the host's events, enabled and not scheduled yet.

    Raises:
        HostError: ENOSPC, more than the record has room for.
    """
    if len(events) > N_EVENTS - N_PMC:
        raise HostError(28, f"{len(events)} host events; there is room for {N_EVENTS - N_PMC}")
    first = int(S.perf_rows)
    for k, attr in enumerate(events):
        i = first + k
        event = S.perf_events[i]
        event.used = 1
        event.state = PERF_EVENT_STATE_INACTIVE
        event.pmu_type = PERF_TYPE_RAW
        event.ctx = CTX_TASK if attr.task else 0
        event.cpu = -1 if attr.task else 0
        event.owner = OWNER_HOST
        event.pmc = -1
        event.spec = k
        event.leader = first + attr.leader if attr.leader >= 0 else i
        event.order = i
        event.config = attr.config
        event.pinned = int(attr.pinned)
        event.exclude_user = int(attr.exclude_user)
        event.exclude_kernel = int(attr.exclude_kernel)
        event.exclude_host = int(attr.exclude_host)
        event.exclude_guest = int(attr.exclude_guest)
        event.sample_period = attr.period
        event.period = attr.period or int(MAX_PERIOD)
        event.period_left = event.period
        event.stopped = 1
    S.list_end = S.perf_rows = S.perf_ids = first + len(events)
    for i in range(int(S.perf_rows)):
        S.perf_events[i].id = i + 1


def kvm_pmu_refresh(S: Any, shape: Shape) -> None:
    """Give the vCPU a PMU of this shape and reset it (KVM_SET_CPUID2, kvm_pmu_reset)."""
    pmu = S.vcpus[0].pmu
    inject = int(S.cores[0].inject)
    passthrough = int(S.config.mode) == MODE_PASSTHROUGH
    table = rules("kvm", shape, unchecked_msrs(inject))
    row = {r.name: k for k, r in enumerate(MSRS)}
    pmu.version = shape.version
    pmu.nr_arch_gp_counters = shape.gp
    pmu.nr_arch_fixed_counters = shape.fixed
    pmu.width = shape.gp_width
    pmu.counter_bitmask = (1 << shape.gp_width) - 1
    pmu.perf_capabilities = shape.perf_capabilities
    pmu.eventsel_rsvd = table.reserved[row["IA32_PERFEVTSEL"]]
    pmu.fixed_ctr_ctrl_rsvd = table.reserved[row["IA32_FIXED_CTR_CTRL"]]
    pmu.global_ctrl_rsvd = table.reserved[row["IA32_PERF_GLOBAL_CTRL"]]
    pmu.global_status_rsvd = table.reserved[row["IA32_PERF_GLOBAL_STATUS_RESET"]]
    gp_mask = (1 << shape.gp) - 1
    pmu.all_valid_pmc = gp_mask | ((1 << shape.fixed) - 1) << 32
    # Both vendors enable all GP counters at RESET, so that software for version 1 works. A guest of
    # version 1 has no GLOBAL_CTRL, but the hardware has, and it is loaded with this.
    enabled = (shape.version > 1 or passthrough) and not inject & int(I_RESET_TO_0)
    pmu.global_ctrl = gp_mask if enabled else 0
    for i, pmc in enumerate(pmu.pmcs):
        pmc.perf_event = -1
        pmc.eventsel = (0x00C0, 0x003C, 0x0300, 0x0400)[i - N_GP_PMC] if i >= N_GP_PMC else 0
    vcpu = S.vcpus[0]
    vcpu.msr_n[:] = table.exists_count
    vcpu.msr_reserved[:] = table.reserved
    vcpu.msr_access[:] = table.access
    S.vcpus[0].ia32_misc_enable_msr = table.reset[row["IA32_MISC_ENABLE"]]
    vcpu.msr_dropped[:] = [0 if inject & int(I_ABSENT_PERFCTR) else r.kvm.drop_absent for r in MSRS]


def set_event_filter(S: Any, event_filter: EventFilter | None) -> None:
    """KVM_SET_PMU_EVENT_FILTER: install it and have every counter looked at again, at the next exit.

    (The kernel also kicks the vCPU out of its guest; here it leaves when it does.)
    """
    vm = S.vms[0]
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
    vcpu = S.vcpus[0]
    if vcpu.pmu.version:
        vcpu.pmu.reprogram_pmi = (1 << 64) - 1
        vcpu.requests |= KVM_REQ_PMU


def guest_events(model: CpuModel, settings: Mapping[str, int]) -> tuple[int, int]:
    """What CPUID.0AH says of the architectural events: (EAX[31:24], EBX).

    The VMM may hide events; KVM passes it on and does not look at it when the guest sets a selector.
    """
    asked = {key.removeprefix("pmu."): value for key, value in settings.items()}
    length = asked.get("events_length", model.arch_events_length)
    return length, asked.get("events_absent", model.arch_events_absent)


def build_vm(
    S: Any,
    M: np.ndarray[Any, Any],
    model: CpuModel,
    ram_size: int,
    shape: Shape,
    told: Shape,
    events: tuple[int, int],
) -> None:
    """Lay out VMCS, MSR bitmap and MSR lists above the guest's RAM, and the virtual APIC.

    `shape` is the guest's PMU (`guest_shape`), `told` and `events` what its CPUID says of it
    (`guest_cpuid_shape`, `guest_events`).
    """
    vcpu, config = S.vcpus[0], S.config
    vm = S.vms[0]
    vm.used = 1
    vm.ram_size = vm.slot_size[0] = ram_size
    config.memory = len(M)
    vcpu.vmcs, vcpu.msr_bitmap, vcpu.msr_lists = (ram_size + k * PAGE for k in range(3))
    passthrough = int(config.mode) == MODE_PASSTHROUGH and shape.version > 0
    own_switch = passthrough and not int(config.without) & int(W_GLOBAL_CTRL_SWITCH)

    def field(name: str, value: int) -> None:
        at = vcpu.vmcs + vmcs_field(name).offset
        M[at : at + 8] = np.frombuffer(int(value).to_bytes(8, "little"), dtype=np.uint8)

    def controls(*names: str) -> int:
        return sum(1 << control_bit(name) for name in names)

    pin = ("PIN_BASED_EXT_INTR_MASK", "PIN_BASED_NMI_EXITING", "PIN_BASED_VIRTUAL_NMIS")
    proc = [
        "CPU_BASED_USE_TSC_OFFSETTING",
        "CPU_BASED_HLT_EXITING",
        "CPU_BASED_UNCOND_IO_EXITING",
        "CPU_BASED_USE_MSR_BITMAPS",
    ]
    if not passthrough:
        proc.append("CPU_BASED_RDPMC_EXITING")
    exit_controls = ["VM_EXIT_HOST_ADDR_SPACE_SIZE", "VM_EXIT_ACK_INTR_ON_EXIT"]
    entry_controls = ["VM_ENTRY_IA32E_MODE"]
    if own_switch and config.load_global_ctrl:
        exit_controls.append("VM_EXIT_LOAD_IA32_PERF_GLOBAL_CTRL")
        entry_controls.append("VM_ENTRY_LOAD_IA32_PERF_GLOBAL_CTRL")
    if own_switch and config.save_global_ctrl:
        exit_controls.append("VM_EXIT_SAVE_IA32_PERF_GLOBAL_CTRL")
    field("PIN_BASED_VM_EXEC_CONTROL", controls(*pin))
    field("CPU_BASED_VM_EXEC_CONTROL", controls(*proc))
    field("VM_EXIT_CONTROLS", controls(*exit_controls))
    field("VM_ENTRY_CONTROLS", controls(*entry_controls))
    field("EXCEPTION_BITMAP", 1 << VECTOR_DB | 1 << VECTOR_UD)  # vmx_update_exception_bitmap()
    field("MSR_BITMAP", vcpu.msr_bitmap)
    # With EPT the guest owns what no longer concerns KVM's page tables (KVM_POSSIBLE_CR*_GUEST_BITS).
    field("CR0_GUEST_HOST_MASK", ((1 << 64) - 1) & ~CR0_GUEST_BITS)
    field("CR4_GUEST_HOST_MASK", ((1 << 64) - 1) & ~CR4_GUEST_BITS)
    field("CR0_READ_SHADOW", int(CR0_RESET))
    field("CR4_READ_SHADOW", int(CR4_RESET))
    field("HOST_IA32_PERF_GLOBAL_CTRL", 0)  # all counters stop at VM exit
    lists = (
        ("VM_EXIT_MSR_STORE", 0, own_switch and not config.save_global_ctrl),
        ("VM_EXIT_MSR_LOAD", EXIT_LOAD_LIST, own_switch and not config.load_global_ctrl),
        ("VM_ENTRY_MSR_LOAD", ENTRY_LOAD_LIST, own_switch and not config.load_global_ctrl),
    )
    for name, offset, used in lists:
        at = vcpu.msr_lists + offset
        M[at : at + 4] = np.frombuffer(GLOBAL_CTRL.to_bytes(4, "little"), dtype=np.uint8)
        field(f"{name}_ADDR", at)
        field(f"{name}_COUNT", int(used))
    _msr_bitmap(M[vcpu.msr_bitmap : vcpu.msr_bitmap + PAGE], S, shape, passthrough)

    guest = attrs.evolve(
        model,
        features=model.features - NOT_FOR_GUESTS - (frozenset() if shape.pdcm else {"pdcm"}),
    )
    pmu_leaf = cpuid_pmu(told, events_length=events[0], events_absent=events[1])
    leaves = [
        (leaf, a, b, c | (HYPERVISOR if leaf == 1 else 0), d)
        for leaf, a, b, c, d in cpuid_leaves(guest)
        if leaf != 0xA
    ]
    leaves.append((0xA, *pmu_leaf))
    leaves.append((0x4000_0000, 0x4000_0001, *struct.unpack("<III", b"KVMKVMKVM\0\0\0")))
    leaves.append((0x4000_0001, 0, 0, 0, 0))
    for k, entry in enumerate(vcpu.cpuid):
        entry.subleaf = entry.leaf = (1 << 64) - 1
        if k < len(leaves):
            entry.leaf, entry.eax, entry.ebx, entry.ecx, entry.edx = leaves[k]

    vapic = vcpu.vapic
    vapic.apic_base, vapic.spiv, vapic.timer_at = BASE_RESET, 0xFF, NEVER
    vapic.lvt[:] = LVT_MASKED
    vapic.dfr = 0xFFFF_FFFF
    S.vcpus[0].exception = -1


def _msr_bitmap(page: np.ndarray[Any, Any], S: Any, shape: Shape, passthrough: bool) -> None:
    """The intercept rule of every mode; docs/modes.md says why."""
    page[:] = 0xFF

    def passes(name_or_index: str | int, reads: bool = True, writes: bool = True) -> None:
        index = name_or_index if isinstance(name_or_index, int) else by_name(name_or_index)
        at = index & 0x1FFF
        half = 0x400 if index >= 0xC000_0000 else 0
        for used, base in ((reads, half), (writes, 0x800 + half)):
            if used:
                page[base + at // 8] &= 0xFF ^ (1 << at % 8)

    for name in ("IA32_FS_BASE", "IA32_GS_BASE", "IA32_KERNEL_GS_BASE"):
        passes(name)
    passes("IA32_TIME_STAMP_COUNTER", writes=False)
    if not passthrough:
        return
    for i in range(shape.gp):  # patch 17
        passes(0xC1 + i)
        if shape.perf_capabilities & CAP_FW_WRITES:  # patch 18
            passes(0x4C1 + i)
        if S.config.all_passthrough:
            passes(0x186 + i)
    for i in range(shape.fixed):
        passes(0x309 + i)
    if shape.version > 1:
        for index in (0x38E, GLOBAL_CTRL, 0x390):
            passes(index)
        if S.config.all_passthrough:
            passes(0x38D)


def _save_guest(S: Any, M: np.ndarray[Any, Any]) -> None:
    """What core 0 holds becomes the state of vCPU 0: the guest begins where the program would."""
    core, vcpu = S.cores[0], S.vcpus[0]
    values = {
        "GUEST_RIP": core.rip, "GUEST_RSP": core.regs[4], "GUEST_RFLAGS": core.rflags,
        "GUEST_CR0": core.cr0, "GUEST_CR3": core.cr3, "GUEST_CR4": core.cr4,
        "GUEST_IA32_EFER": core.efer, "GUEST_IA32_DEBUGCTL": core.pmu.debugctl,
        "GUEST_SS_AR_BYTES": 0, "GUEST_TR_SELECTOR": core.tr, "GUEST_TR_BASE": core.tr_base,
        "GUEST_TR_LIMIT": core.tr_limit, "GUEST_GDTR_BASE": core.gdt_base,
        "GUEST_GDTR_LIMIT": core.gdt_limit, "GUEST_IDTR_BASE": core.idt_base,
        "GUEST_IDTR_LIMIT": core.idt_limit, "GUEST_FS_BASE": core.regs[17],
        "GUEST_GS_BASE": core.regs[18], "GUEST_INTERRUPTIBILITY_INFO": 0, "GUEST_ACTIVITY_STATE": 0,
    }  # fmt: skip
    for k, name in enumerate(("ES", "CS", "SS", "DS", "FS", "GS")):
        values[f"GUEST_{name}_SELECTOR"] = core.selectors[k]
    for name, value in values.items():
        at = vcpu.vmcs + vmcs_field(name).offset
        M[at : at + 8] = np.frombuffer(int(value).to_bytes(8, "little"), dtype=np.uint8)
    vcpu.regs[:] = core.regs
    for name in ("star", "lstar", "cstar", "fmask", "kernel_gs_base", "tsc_aux"):
        vcpu[name] = core[name]


def boot(S: Any, M: np.ndarray[Any, Any]) -> None:
    """The host runs, and its first task is in KVM_RUN with vCPU 0."""
    _save_guest(S, M)
    for core in S.cores:
        core.kernel = 1
        core.activity = 0
    task, vcpu, host = S.tasks[0], S.vcpus[0], S.percpu[0]
    task.used = task.pid = task.tgid = 1
    S.next_pid = 2
    task.allowed = (1 << int(S.config.n_cores)) - 1
    task.vcpu = 0
    host.curr = 0
    host.task_ctx = CTX_TASK
    vcpu.used = 1
    vcpu.task = 0


def make_vm(
    S: Any,
    M: np.ndarray[Any, Any],
    E: Any,
    model: CpuModel,
    mode: str,
    ram_size: int,
    *,
    filter: EventFilter | str | Path | None = None,  # noqa: A002
    host_events: Sequence[str | HostEvent] = (),
    guest: Mapping[str, int] | None = None,
    kvm: Mapping[str, int] | None = None,
    quirks: Iterable[str] = (),
    without: Iterable[str] = (),
    all_passthrough: bool = False,
    apicv: bool = True,
    costs: str = "typical",
    n_cores: int = 1,
    watchdog: str = "off",
    watchdog_thresh: float = 10.0,
) -> tuple[Callable[[], int], Any]:
    """A host kernel with one VM whose guest is what core 0 holds.

    `M` has `ram_size` bytes of guest RAM and `HOST_PAGES` above it. Returns the function that runs the
    host until a RUN_* code, and what answers its system calls.

    Raises:
        ConfigError, HostError: settings that the kernel would refuse.
    """
    knobs = dict(kvm or {})
    for key in knobs:
        if key not in KVM_KEYS:
            raise ConfigError(f"kvm {key}", "unknown key", " ".join(KVM_KEYS))
    if knobs.get("force_emulation_prefix", 1) not in (0, 1):
        raise ConfigError("kvm force_emulation_prefix", f"{knobs['force_emulation_prefix']}", "0 1")
    if all_passthrough and mode != "passthrough":
        raise ConfigError("all-passthrough", f"not in mode {mode}", "passthrough")
    if all_passthrough and filter is not None:
        raise ConfigError("filter", "needs the selectors intercepted", "without --all-passthrough")
    if model.version == 1:
        # core_pmu of the kernel would switch every selector at VM entry; no CPU with EPT is so old.
        raise ConfigError("set pmu.version", "a host needs GLOBAL_CTRL for its guests", "0 2 3 4 5")
    init_config(
        S,
        model,
        mode,
        quirks=quirks,
        without=without,
        all_passthrough=all_passthrough,
        apicv=apicv,
        costs=costs,
        n_cores=n_cores,
    )
    # Off in a kernel that nobody told otherwise; on here, because tests of KVM need it and nothing else
    # executes UD2 followed by "kvm".
    S.config.force_emulation_prefix = knobs.get("force_emulation_prefix", 1)
    settings = {"version": 0} if mode == "none" else dict(guest or {})
    cap = knobs.get("fixed_cap", 3)
    shape = guest_shape(model.shape(), settings, cap)
    told = guest_cpuid_shape(model.shape(), settings, cap)
    init_host(S, model)
    lockup_detector_init(S, watchdog, watchdog_thresh)
    specs = [e if isinstance(e, HostEvent) else None for e in host_events]
    parsed = parse_host_events([e for e in host_events if isinstance(e, str)], model.events)
    add_host_events(S, parsed + [e for e in specs if e is not None])
    kvm_pmu_refresh(S, shape)
    build_vm(S, M, model, ram_size, shape, told, guest_events(model, settings))
    if filter is not None:
        if not isinstance(filter, EventFilter):
            filter = load_filter(filter, model.events)  # noqa: A001
        set_event_filter(S, filter)
    boot(S, M)
    if mode == "passthrough":
        from vpmu_emu.linux.run_passthrough import run_host_passthrough as run
    else:
        from vpmu_emu.linux.run_emulated import run_host_emulated as run
    return (lambda: int(run(S, M, E))), None


# --- reports --------------------------------------------------------------------------------------------
def guest_pmu(S: Any, E: Any) -> dict[str, Any]:
    """The PMU as the guest sees it: what host-initiated reads would give. Changes nothing."""
    pmu = S.vcpus[0].pmu
    hardware = hardware_counters(S)
    silicon = S.cores[0].pmu
    mask = int(pmu.counter_bitmask)
    loaded = bool(pmu.guest_ctx_loaded)
    values = []
    for i, pmc in enumerate(pmu.pmcs):
        value = hardware[i] if loaded else int(pmc.counter)
        value += int(pmc.emulated_counter)
        if int(pmc.perf_event) >= 0 and not int(pmc.is_paused):
            value += event_count(S, S.perf_events[int(pmc.perf_event)], hardware)
        values.append(value & mask)
    gp, fixed = int(pmu.nr_arch_gp_counters), int(pmu.nr_arch_fixed_counters)
    through = loaded and bool(S.config.all_passthrough)
    selectors = silicon.eventsel if through else [pmc.eventsel for pmc in pmu.pmcs]
    inside = loaded and bool(S.cores[0].vmx.nonroot)
    return {
        "eventsel": [int(v) for v in selectors[:gp]],
        "pmc": values[:gp],
        "fixed_ctr_ctrl": int(silicon.fixed_ctr_ctrl if through else pmu.fixed_ctr_ctrl),
        "fixed": values[N_GP_PMC : N_GP_PMC + fixed],
        "global_ctrl": int(silicon.global_ctrl if inside else pmu.global_ctrl),
        "global_status": int(silicon.global_status if loaded else pmu.global_status),
    }


def software_instructions(S: Any) -> int:
    """Instructions that KVM did for the guest; hardware never retired them."""
    return int(S.vcpus[0].emulated_insns)


def _after_put(S: Any) -> dict[str, Any]:
    """The hardware PMU right after the last put, before host events were scheduled in again."""
    pmu, silicon = S.vcpus[0].pmu, S.cores[0].pmu
    counters = [int(v) for v in pmu.put_counters]
    return {
        "eventsel": [int(v) for v in pmu.put_eventsel[: int(silicon.gp)]],
        "pmc": counters[: int(silicon.gp)],
        "fixed_ctr_ctrl": int(pmu.put_fixed_ctr_ctrl),
        "fixed": counters[N_GP_PMC : N_GP_PMC + int(silicon.fixed)],
        "global_ctrl": int(pmu.put_global_ctrl),
        "global_status": int(pmu.put_global_status),
    }


def report(S: Any) -> dict[str, Any]:
    """The host kernel's part of a result."""
    host, vcpu = S.percpu[0], S.vcpus[0]
    pmu = vcpu.pmu
    numbers = ("nmis", "timer_irqs", "vpmi_irqs", "rotations", "throttles")
    kvm = ("created", "released", "resumed", "paused", "loads", "puts", "dirty_puts", "loaded_insns")
    after_put = {"hw": _after_put(S)} if int(pmu.puts) else {}
    return {
        **after_put,
        "perf": {
            "events": perf_report(S),
            "errors": error_report(S),
            "closed": closed_report(S),
            **{key: int(host[key]) for key in numbers},
        },
        "kvm": {
            "entries": int(vcpu.entries),
            "fastpaths": int(vcpu.fastpaths),
            "emulated_instructions": int(vcpu.emulated_insns),
            **{key: int(pmu[key]) for key in kvm},
            "eventsel_hw": [int(p.eventsel_hw) for p in pmu.pmcs[: int(pmu.nr_arch_gp_counters)]],
            "fixed_ctr_ctrl_hw": int(pmu.fixed_ctr_ctrl_hw),
        },
        "watchdog": lockup_report(S),
    }
