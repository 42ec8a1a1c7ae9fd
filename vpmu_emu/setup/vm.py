"""Makes the host kernel's part of a SYSTEM record, in plain Python, before anything compiled runs.

What KVM and perf would do at module load, KVM_CREATE_VM, KVM_SET_CPUID2 and perf_event_open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from vpmu_emu.errors import ConfigError, HostError
from vpmu_emu.linux.irq_vectors import LOCAL_TIMER_VECTOR
from vpmu_emu.linux.kvm.cpuid import (
    check_mediated_pmu,
    fixed_counter_cap,
    guest_cpuid_shape,
    guest_events,
)
from vpmu_emu.linux.kvm.eventfilter import EventFilter
from vpmu_emu.linux.kvm.module import as_loaded, load_module, vpmu_of
from vpmu_emu.linux.perf.x86 import INTEL_TD_SLOTS, MAX_PERIOD
from vpmu_emu.linux.state import (
    CTX_TASK,
    N_EVENTS,
    N_PMC,
    OWNER_HOST,
    PERF_EVENT_STATE_INACTIVE,
    PERF_TYPE_RAW,
    PMI_VECTOR_NAMES,
    QUIRKS,
    SYSTEM,
    VPMU_MEDIATED,
    WATCHDOG_NAMES,
    WATCHDOG_NMI,
    bits,
    quirk_names,
)
from vpmu_emu.linux.sysctl import (
    CPU_TIME_MAX_PERCENT,
    MAX_SAMPLE_RATE,
    set_cpu_time_max_percent,
    set_sample_rate,
)
from vpmu_emu.linux.watchdog import (
    DEFAULT_THRESH,
    check_settings,
    lockup_detector_init,
)
from vpmu_emu.machine import msr_index
from vpmu_emu.machine.lapic import BASE_RESET, LVT_PMI, LVT_TIMER
from vpmu_emu.machine.state import NEVER
from vpmu_emu.machine.u64 import U64
from vpmu_emu.options import COST_LEVELS, Options, known
from vpmu_emu.setup import saved
from vpmu_emu.setup.boot import boot_host, wishes
from vpmu_emu.setup.filterfile import load_filter
from vpmu_emu.setup.hostevents import HostEvent, parse_host_events
from vpmu_emu.setup.msrfilter import MsrFilter, load_msr_filter
from vpmu_emu.setup.saved import SavedVm, check_fit
from vpmu_emu.tables.cpus import COST_NAMES, CpuModel
from vpmu_emu.tables.events import LISTS, metric_names
from vpmu_emu.tables.modes import MODES, SWITCH_POLICIES, VPMUS, Mode, mode_names, mode_of
from vpmu_emu.tables.msrs import Shape
from vpmu_emu.tables.patches import without_bits

SAPPHIRERAPIDS_X = 0x8F  # KVM's list of CPUs with PDist has no other (vmx_pebs_pdist_cpu)
ICELAKE_X = 0x6A  # of those with PDIR (vmx_icl_pebs_cpu)
EBUSY, EOPNOTSUPP = 16, 95
KVM_APIC_KHZ = 1_000_000  # APIC_BUS_CYCLE_NS: the timer of a guest's local APIC before its divider
SLICE_US = 2800  # sysctl_sched_base_slice of a machine with 8 CPUs or more, in microseconds
QUANTUM = 1000 * 16  # how far one core may be ahead of another, in 1/16 cycle


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
        known(key, key, name, table)
    return bits(dict(table), *names)


def init_config(S: Any, model: CpuModel, mode: Mode, options: Options | None = None) -> None:
    """Fill `S.config`; without `options` they are as usual."""
    options = options or Options()
    config = S.config
    config.mode = mode_names().index(mode.name)
    config.kernel, config.series = mode.kernel.version, int(mode.kernel.series)
    config.enable_pmu = int(mode.enable_pmu)
    config.quirks = chosen_bits("quirk", QUIRKS, quirk_names(options.quirks))
    config.without = without_bits(options.without)
    load_module(S, mode, model.version)
    # Of guests that own the PMU, in a VM of another mode too.
    owned = (row for row in MODES.values() if row.owns_pmu and row.kernel is mode.kernel)
    config.switch = SWITCH_POLICIES.index(options.switch or next(owned, mode).switch)
    config.other_vpmu = -1
    if options.other_vpmu is not None:
        config.other_vpmu = vpmu_of(MODES[options.other_vpmu], model.version, int(config.without))
    config.mixed = options.kvm.get("mixed", 0)
    config.event_reuse = options.kvm.get("event_reuse", 1)
    config.count_emulated = options.kvm.get("count_emulated", 1)
    config.all_passthrough = int(options.all_passthrough)
    config.pmi_vector = PMI_VECTOR_NAMES.index(options.pmi_vector)
    config.apicv = int(options.apicv)
    config.load_global_ctrl = 1
    config.events = LISTS.index(model.events)
    config.pebs_pdist = int((model.family, model.model) == (6, SAPPHIRERAPIDS_X))
    config.pebs_pdir = int((model.family, model.model) == (6, ICELAKE_X))
    config.save_global_ctrl = int("save_perf_global_ctrl" in model.features)
    config.tsc_khz = model.tsc_khz
    config.core_khz = model.core_khz
    config.cyc2ns_mul = (1_000_000 << 31) // model.tsc_khz
    config.hz = options.hz
    config.no_hz_idle = int(options.nohz == "idle")
    config.tick_interval = model.core_khz * 1000 // options.hz * 16
    config.mux_interval = 1000 // options.hz * model.core_khz * 16  # PERF_CPU_HRTIMER: 1000 / HZ ms
    set_sample_rate(config, MAX_SAMPLE_RATE)
    set_cpu_time_max_percent(config, CPU_TIME_MAX_PERCENT)
    config.n_cores = options.cores
    config.quantum = QUANTUM
    config.sched_slice = model.core_khz * SLICE_US // 1000 * 16
    level = COST_LEVELS.index(options.costs)
    for k, name in enumerate(COST_NAMES):
        cost = model.cost(name)
        config.costs[k] = (cost.cycles[level], cost.instructions, cost.branches)


def init_host(S: Any, model: CpuModel) -> None:
    """Fill `S.percpu` and the cores' local APICs as a booted Linux has them."""
    for cpu, (core, host) in enumerate(zip(S.cores, S.percpu, strict=True)):
        for field in ("event_list", "assign", "events", "last_event"):
            host[field][:] = -1
        host.intel_ctrl = (1 << model.gp) - 1 | ((1 << model.fixed) - 1) << 32
        if model.perf_capabilities & int(msr_index.PERF_CAP_PERF_METRICS) and model.fixed > 3:
            host.intel_ctrl |= msr_index.GLOBAL_CTRL_EN_PERF_METRICS
        host.enabled = 1
        host.curr = host.vcpu = host.task_ctx = -1
        host.online = int(cpu < S.config.n_cores)
        host.mux_at = host.tick_at = host.clock_at = host.timer_at = NEVER
        host.watchdog_at = host.pmu_away_since = NEVER
        core.vapic.clock_num, core.vapic.clock_den = model.per_core_cycle(KVM_APIC_KHZ)
        lapic = core.lapic
        lapic.apic_base = BASE_RESET | msr_index.X2APIC_ENABLE
        lapic.spiv = msr_index.APIC_SPIV_APIC_ENABLED | U64(0xFF)
        lapic.lvt[LVT_TIMER] = U64(LOCAL_TIMER_VECTOR) | msr_index.APIC_LVT_TIMER_TSCDEADLINE
        lapic.lvt[LVT_PMI] = msr_index.APIC_DM_NMI
        lapic.timer_at = NEVER
        core.pmu.global_ctrl = host.intel_ctrl
        core.vmx.root = 1  # KVM is loaded: VMXON
    for event in S.perf_events:
        event.idx = event.leader = event.pmc = event.spec = event.parent = event.vcpu = event.cpu = -1
        event.output = -1
    for task in S.tasks:
        task.on_cpu = task.vcpu = -1
        task.wake_at = NEVER
    for vcpu in S.vcpus:
        vcpu.task = vcpu.cpu = vcpu.user_exit = vcpu.exception = -1
    S.this_vcpu = 0


def check_room(events: Sequence[HostEvent]) -> None:
    """Raises HostError (ENOSPC) if the record has no room for so many events of the host."""
    if len(events) > N_EVENTS - N_PMC:
        raise HostError(28, f"{len(events)} host events; there is room for {N_EVENTS - N_PMC}")


def topdown_events(S: Any, events: Sequence[HostEvent]) -> set[int]:
    """Indices of the events that share fixed counter 3: fractions of PERF_METRICS and their slots events.

    Raises:
        HostError: EINVAL, a fraction without a slots event that leads its group, or one that samples
            (intel_pmu_hw_config).
    """
    pmu = S.cores[0].pmu
    if not int(pmu.perf_capabilities) & int(msr_index.PERF_CAP_PERF_METRICS) or int(pmu.fixed) <= 3:
        return set()
    codes = metric_names(LISTS[int(S.config.events)]).values()
    found = set()
    for k, event in enumerate(events):
        leader = events[event.leader] if event.leader >= 0 else event
        if event.config & 0xFFFF not in codes:
            continue
        if event.config not in codes or leader.config != INTEL_TD_SLOTS or event.period or leader.period:
            what = "needs a slots event that leads its group, and no period"
            raise HostError(22, f"{event.name}: {what}; {{slots,topdown-retiring}} is such a group")
        found |= {k, event.leader}
    return found


def add_host_events(S: Any, events: Sequence[HostEvent]) -> None:
    """Make the host's events, enabled and not scheduled yet.

    Raises:
        HostError: ENOSPC, more than the record has room for; EINVAL, as `topdown_events`.
    """
    check_room(events)
    topdown = topdown_events(S, events)
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
        event.topdown = int(k in topdown)
    S.list_end = S.perf_rows = S.perf_ids = first + len(events)
    for i in range(int(S.perf_rows)):
        S.perf_events[i].id = i + 1


@attrs.frozen(kw_only=True)
class VmSettings:
    """What was asked of host and guest, and can be.

    Attributes:
        told: what the guest's CPUID shows of its PMU.
        guest: what the VMM changes in it.
        chosen: the event filter.
        msr_filter: the MSR filter.
        events: of the host.
        thresh: of the watchdog, in seconds.
        saved: the VM that the VMM goes on from.
    """

    told: Shape
    guest: Mapping[str, int]
    chosen: EventFilter | None
    msr_filter: MsrFilter | None
    events: Sequence[HostEvent]
    thresh: float
    saved: SavedVm | None = None


def vm_settings(model: CpuModel, mode: Mode, options: Options) -> VmSettings:
    """Look at what `Options.check` cannot: what depends on the CPU, and files; before anything is made.

    Raises:
        ConfigError, HostError: settings that the kernel would refuse.
    """
    if model.version == 1:
        # core_pmu of the kernel would switch every selector at VM entry; no CPU with EPT is so old.
        raise ConfigError("set pmu.version", "a host needs GLOBAL_CTRL for its guests", "0 2 3 4 5")
    merged = mode.vpmu == VPMUS[VPMU_MEDIATED]
    others = MODES[options.other_vpmu].vpmu if options.other_vpmu is not None else mode.vpmu
    if VPMUS[VPMU_MEDIATED] in (mode.vpmu, others):
        check_mediated_pmu(model.shape())
    fixed_cap = fixed_counter_cap(mode, options.kvm.get("fixed_cap", 3))
    guest = options.guest if mode.enable_pmu else {"version": 0}
    few_caps = as_loaded(mode, model.version, without_bits(options.without)).few_caps
    told = guest_cpuid_shape(model.shape(), guest, fixed_cap, few_caps)
    thresh = DEFAULT_THRESH if options.watchdog_thresh is None else options.watchdog_thresh
    check_settings(options.watchdog, thresh, model.version)
    if merged and options.watchdog == WATCHDOG_NAMES[WATCHDOG_NMI]:
        what = "its event counts in guests: KVM_CREATE_VCPU fails with EBUSY (perf_create_mediated_pmu)"
        raise HostError(EBUSY, f"watchdog nmi: {what}; buddy and hpet need no event")
    chosen = options.filter
    if chosen is not None and not isinstance(chosen, EventFilter):
        chosen = load_filter(chosen, model.events)
    msr_filter = options.msr_filter
    if msr_filter is not None and not isinstance(msr_filter, MsrFilter):
        msr_filter = load_msr_filter(msr_filter)
    parsed = parse_host_events([e for e in options.host_events if isinstance(e, str)], model.events)
    events = parsed + [e for e in options.host_events if isinstance(e, HostEvent)]
    check_room(events)
    for event in events if merged else ():
        if not event.exclude_guest:
            what = "counts in guests, and there is a VM whose guests own the PMU: EOPNOTSUPP"
            raise HostError(EOPNOTSUPP, f"host-event {event.name}: {what}; modifier H leaves guests out")
    if options.restore is not None:
        check_fit(options.restore, model, mode, options.kvm.get("fixed_cap", 3), options.without)
    return VmSettings(
        told=told, guest=guest, chosen=chosen, msr_filter=msr_filter, events=events, thresh=thresh,
        saved=options.restore,
    )  # fmt: skip


def make_vm(
    S: Any,
    M: np.ndarray[Any, Any],
    E: Any,
    model: CpuModel,
    vmm: Any,
    image: bytes,
    options: Options,
    settings: VmSettings,
    programs: Sequence[Any] = (),
) -> tuple[Callable[[], int], Any]:
    """A host kernel whose program `vmm` is about to enter a guest with the ELF `image` in it.

    `M` has `options.ram` MiB for the guest and `HOST_MEMORY` above it; `settings` were looked at by
    `vm_settings`. Returns the function that runs the host until a RUN_* code, and what answers its system
    calls. `programs` of the host begin right before the guest.

    Raises:
        ConfigError, HostError: settings that the kernel would refuse.
    """
    mode = options.mode
    init_config(S, model, mode, options)
    # Off in a kernel that nobody told otherwise; on here, because tests of KVM need it and nothing else
    # executes UD2 followed by "kvm".
    S.config.force_emulation_prefix = options.kvm.get("force_emulation_prefix", 1)
    S.config.fixed_cap = fixed_counter_cap(mode, options.kvm.get("fixed_cap", 3))
    init_host(S, model)
    lockup_detector_init(S, options.watchdog, settings.thresh)
    from vpmu_emu.linux.run import run_host

    def loop() -> int:
        return int(run_host(S, M, E))

    own = guest_events(model, settings.guest)
    fixed_cap, loaded = int(S.config.fixed_cap), mode_of(S.config)
    files = wishes(model, loaded, settings.told, own, fixed_cap, settings.chosen, settings.msr_filter)
    files["/guest"] = image
    live = "restore" if settings.saved is not None else "save" if options.save is not None else ""
    if settings.saved is not None:
        files[saved.PATH] = settings.saved.payload
    host = boot_host(S, M, E, model, loop, vmm, options.ram << 20, files, programs, live)
    # As `perf stat` attaches to a VMM that runs already.
    add_host_events(S, settings.events)
    for percpu in S.percpu:
        percpu.booted = 0
    return loop, host
