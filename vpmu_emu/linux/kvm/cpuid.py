"""What a guest's CPUID may say, and the vPMU that it then has: KVM_GET_SUPPORTED_CPUID, kvm_pmu_refresh().

arch/x86/kvm/cpuid.c, pmu.c, vmx/pmu_intel.c.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from vpmu_emu.errors import ConfigError
from vpmu_emu.linux.state import N_FIXED_PMC, N_GP_PMC
from vpmu_emu.machine import msr_index
from vpmu_emu.tables.cpus import CpuModel, cpuid_leaves, cpuid_pmu
from vpmu_emu.tables.modes import Mode
from vpmu_emu.tables.msrs import Shape

PERF_CAP_FW_WRITES = int(msr_index.PERF_CAP_FW_WRITES)
PERF_CAP_LBR_FMT = int(msr_index.PERF_CAP_LBR_FMT)
PERF_CAP_PEBS_FORMAT = int(msr_index.PERF_CAP_PEBS_FORMAT)
PERF_CAP_PEBS_BASELINE = int(msr_index.PERF_CAP_PEBS_BASELINE)
CAP_PEBS_MASK = int(
    msr_index.PERF_CAP_PEBS_TRAP
    | msr_index.PERF_CAP_ARCH_REG
    | msr_index.PERF_CAP_PEBS_FORMAT
    | msr_index.PERF_CAP_PEBS_BASELINE
    | msr_index.PERF_CAP_PEBS_TIMING_INFO
)
NOT_FOR_GUESTS = {"arch_lbr"}  # CPUID features
KVM_PMU_VERSION = 2
MEDIATED_VERSION = 4  # of a PMU that a guest may own: GLOBAL_STATUS_SET is there
HYPERVISOR = 1 << 31  # CPUID.1:ECX
PDCM = 1 << 15
DS = 1 << 21  # CPUID.1:EDX
DTES64 = 1 << 2  # CPUID.1:ECX
X2APIC = 1 << 21  # CPUID.1:ECX
RTM, RDPID, IBPB = 1 << 4 | 1 << 11, 1 << 22, 1 << 26  # CPUID.7: HLE or RTM in EBX, ECX, EDX
RDTSCP = 1 << 27  # CPUID.80000001H:EDX
KVM_FEATURES = 1 << 7 | 1 << 11 | 1 << 13  # PV_UNHALT, PV_SEND_IPI, PV_SCHED_YIELD
NO_LEAF_MAXPHYADDR = 36  # cpuid_query_maxphyaddr()
GUEST_KEYS = {
    "version": 255, "gp": N_GP_PMC, "fixed": N_FIXED_PMC, "width": 48, "perf_caps": 1 << 18,
    "events_length": 255, "events_absent": (1 << 32) - 1,
}  # fmt: skip

Leaf = tuple[int, int, int, int, int]


def vmx_get_perf_capabilities(host: Shape, few_caps: bool) -> int:
    """What KVM supports of IA32_PERF_CAPABILITIES on this CPU.

    Branch records are legacy ones only. PEBS has no BASELINE: with adaptive records a guest could read the
    host's branches. A guest that owns the PMU gets neither.
    """
    caps = host.perf_capabilities & PERF_CAP_FW_WRITES
    if not few_caps:
        if not host.arch_lbr:
            caps |= host.perf_capabilities & PERF_CAP_LBR_FMT
        if host.ds:
            caps |= host.perf_capabilities & CAP_PEBS_MASK & ~PERF_CAP_PEBS_BASELINE
    return caps


def supported_perf_cap(model: CpuModel, mode: Mode) -> int:
    """IA32_PERF_CAPABILITIES of a new vCPU and of /dev/kvm: all that KVM supports.

    6.7 gives it without a condition, later kernels by KVM_X86_QUIRK_STUFF_FEATURE_MSRS, which is on.
    """
    return vmx_get_perf_capabilities(model.shape(), mode.few_caps) if mode.enable_pmu else 0


def capabilities_fit(host: Shape, caps: int, few_caps: bool) -> bool:
    """Whether a VMM may set IA32_PERF_CAPABILITIES to `caps`: LBRs and PEBS are the host's or not there."""
    supported = vmx_get_perf_capabilities(host, few_caps)
    if caps & ~supported or (caps & PERF_CAP_LBR_FMT and (caps ^ supported) & PERF_CAP_LBR_FMT):
        return False
    return not (caps & PERF_CAP_PEBS_FORMAT and (caps ^ supported) & CAP_PEBS_MASK)


def check_mediated_pmu(host: Shape) -> None:
    """Whether this CPU can have the vPMU that was merged (intel_pmu_is_mediated_pmu_supported).

    KVM itself would say nothing, clear `enable_mediated_pmu` and give its guests perf's. Its third
    condition, VM entry and exit that load GLOBAL_CTRL, holds on every CPU with a PMU of that version.

    Raises:
        ConfigError: it cannot; which condition fails, and what would do.
    """
    if host.version < MEDIATED_VERSION:
        what = f"the host's PMU has version {host.version}: no GLOBAL_STATUS_SET to give a guest its status"
        raise ConfigError("vpmu mediated", what, "--set pmu.version=4 or 5, another --cpu")
    if not host.perf_capabilities & PERF_CAP_FW_WRITES:
        what = "the host's counters cannot be written in full: no FW_WRITES in IA32_PERF_CAPABILITIES"
        raise ConfigError("vpmu mediated", what, f"--set pmu.perf_caps with {PERF_CAP_FW_WRITES:#x}")


def fixed_counter_cap(mode: Mode, asked: int) -> int:
    """KVM_MAX_NR_INTEL_FIXED_COUNTERS: 3 as merged, 4 later, and then for the mediated vPMU alone.

    Raises:
        ConfigError: another number.
    """
    if asked not in (3, 4):
        raise ConfigError("kvm fixed_cap", f"{asked} is not a cap that KVM has had", "3 4")
    return asked if mode.owns_pmu and not mode.kernel.series else 3


def guest_cpuid_shape(
    host: Shape, settings: Mapping[str, int], fixed_cap: int = 3, few_caps: bool = False
) -> Shape:
    """The PMU that a guest's CPUID shows: KVM_GET_SUPPORTED_CPUID, as the VMM changes it.

    KVM stores what the VMM says and does not make it smaller; `guest_shape` is what the guest gets.

    Args:
        host: shape of the CPU.
        settings: version, gp, fixed, width, perf_caps (also spelled pmu.gp and so on); events_length and
            events_absent do not change the shape.
        fixed_cap: KVM_MAX_NR_INTEL_FIXED_COUNTERS (`fixed_counter_cap`).
        few_caps: guests have neither branch records nor PEBS.

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
    caps = asked.get("perf_caps", host.perf_capabilities & PERF_CAP_FW_WRITES)
    if not capabilities_fit(host, caps, few_caps):
        supported = vmx_get_perf_capabilities(host, few_caps)
        parts = [supported & mask for mask in (PERF_CAP_FW_WRITES, PERF_CAP_LBR_FMT, CAP_PEBS_MASK)]
        allowed = "0, or of " + " + ".join(f"{part:#x}" for part in parts if part)
        raise ConfigError("guest pmu.perf_caps", f"{caps:#x} is not supported (EINVAL)", allowed)
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
        pdcm=host.pdcm and version > 0,
        arch_lbr=False,
        ds=version > 0 and bool(caps & PERF_CAP_PEBS_FORMAT),  # the VMM shows DS and DTES64 with it
        # __do_cpuid_func() sets EDX[15] whatever the CPU says.
        anythread_deprecated=version > 0,
    )


def guest_shape(
    host: Shape, settings: Mapping[str, int], fixed_cap: int = 3, few_caps: bool = False
) -> Shape:
    """The PMU that KVM gives to a guest: what its CPUID shows, at most what host and KVM have.

    Arguments and errors are those of `guest_cpuid_shape`.
    """
    return refreshed(host, guest_cpuid_shape(host, settings, fixed_cap, few_caps), fixed_cap)


def refreshed(host: Shape, told: Shape, fixed_cap: int = 3) -> Shape:
    """The PMU that KVM gives to a guest whose CPUID shows `told` (kvm_pmu_refresh)."""
    version = min(told.version, host.version, KVM_PMU_VERSION)
    return attrs.evolve(
        told,
        version=version,
        gp=min(told.gp, host.gp, N_GP_PMC) if version else 0,
        gp_width=min(told.gp_width, host.gp_width),
        fixed=min(told.fixed, host.fixed, fixed_cap) if version > 1 else 0,
        fixed_width=min(told.fixed_width, host.fixed_width),
        perf_capabilities=told.perf_capabilities if version else 0,
        anythread_deprecated=version > 0,
    )


def guest_events(model: CpuModel, settings: Mapping[str, int]) -> tuple[int, int]:
    """What CPUID.0AH says of the architectural events: (EAX[31:24], EBX).

    The VMM may hide events; KVM passes it on and does not look at it when the guest sets a selector.
    """
    asked = {key.removeprefix("pmu."): value for key, value in settings.items()}
    length = asked.get("events_length", model.arch_events_length)
    return length, asked.get("events_absent", model.arch_events_absent)


def guest_leaves(model: CpuModel, told: Shape, events: tuple[int, int]) -> list[Leaf]:
    """CPUID as KVM_GET_SUPPORTED_CPUID gives it, with the PMU `told`: (leaf, EAX, EBX, ECX, EDX)."""
    hidden = NOT_FOR_GUESTS | (set() if told.pdcm and told.version else {"pdcm"})
    hidden |= set() if told.ds else {"ds"}
    guest = attrs.evolve(model, features=model.features - hidden)
    leaves = [
        (leaf, a, b, c | (HYPERVISOR if leaf == 1 else 0), d)
        for leaf, a, b, c, d in cpuid_leaves(guest)
        if leaf != 0xA
    ]
    leaves.append((0xA, *cpuid_pmu(told, events_length=events[0], events_absent=events[1])))
    leaves.append((0x4000_0000, 0x4000_0001, *struct.unpack("<III", b"KVMKVMKVM\0\0\0")))
    leaves.append((0x4000_0001, KVM_FEATURES, 0, 0, 0))
    return leaves


def supported_leaves(model: CpuModel, mode: Mode, fixed_cap: int) -> list[Leaf]:
    """KVM_GET_SUPPORTED_CPUID: the debug store is in it where PEBS is supported (vmx_set_cpu_caps)."""
    settings = {} if mode.enable_pmu else {"version": 0}
    told = guest_cpuid_shape(model.shape(), settings, fixed_cap, mode.few_caps)
    supported = vmx_get_perf_capabilities(model.shape(), mode.few_caps)
    pebs = mode.enable_pmu and supported & PERF_CAP_PEBS_FORMAT
    events = (model.arch_events_length, model.arch_events_absent)
    return guest_leaves(model, attrs.evolve(told, ds=bool(pebs)), events)


def has_debug_store(leaves: Sequence[Leaf]) -> bool:
    """Whether CPUID shows DS and DTES64, without which KVM gives no PEBS."""
    _, _, ecx, edx = next((rest for leaf, *rest in leaves if leaf == 1), [0, 0, 0, 0])
    return bool(edx & DS and ecx & DTES64)


def told_by(host: Shape, leaves: Sequence[Leaf], perf_capabilities: int) -> Shape:
    """The PMU that these CPUID leaves show: what `guest_cpuid_shape` makes of a VMM's wishes."""
    found = {leaf: rest for leaf, *rest in leaves}
    eax, _, _, edx = found.get(0xA, [0, 0, 0, 0])
    absent = [0, 0, 0, 0]
    one, seven, extended = (found.get(leaf, absent) for leaf in (1, 7, 0x8000_0001))
    pdcm = bool(one[2] & PDCM)
    return attrs.evolve(
        host,
        x2apic=bool(one[2] & X2APIC),
        rtm=host.rtm and bool(seven[1] & RTM),
        ibpb=bool(seven[3] & IBPB),
        rdtscp=bool(extended[3] & RDTSCP or seven[2] & RDPID),
        maxphyaddr=found.get(0x8000_0008, [NO_LEAF_MAXPHYADDR])[0] & 0xFF,
        version=eax & 0xFF,
        gp=eax >> 8 & 0xFF,
        gp_width=eax >> 16 & 0xFF,
        fixed=edx & 0x1F,
        fixed_width=edx >> 5 & 0xFF,
        perf_capabilities=perf_capabilities if pdcm else 0,  # vcpu_get_perf_capabilities()
        pdcm=pdcm,
        arch_lbr=False,
        ds=host.ds and bool(one[3] & DS),
        anythread_deprecated=True,
    )


def leaves_of(vcpu: Any) -> list[Leaf]:
    """The leaves that KVM_SET_CPUID2 gave."""
    return [
        (int(e.leaf), int(e.eax), int(e.ebx), int(e.ecx), int(e.edx))
        for e in vcpu.cpuid[: int(vcpu.n_cpuid)]
    ]
