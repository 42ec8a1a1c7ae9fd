"""KVM is loaded: what its parameters and the host's PMU make of the vPMU that was asked for.

arch/x86/kvm/x86.c kvm_init_pmu_capability().
"""

from __future__ import annotations

from typing import Any

import attrs

from vpmu_emu.linux import patches
from vpmu_emu.linux.kvm.cpuid import MEDIATED_VERSION
from vpmu_emu.linux.printk import LOG_NO_PASSTHROUGH, say
from vpmu_emu.tables.modes import VPMUS, Mode

NO_VPMU = len(VPMUS)  # of `config.other_vpmu`: a VM without a PMU


def as_loaded(mode: Mode, version: int, without: int) -> Mode:
    """The mode that guests have on a host whose PMU has this version, with these patches left out.

    Without a PMU that says that it can be passed through, or without the parameter, passthrough guests have
    the emulated vPMU. Left out together, patches 11 and 29 stand for a KVM that always passes the PMU
    through, and takes nothing from PERF_CAPABILITIES.
    """
    if not (mode.owns_pmu and mode.kernel.series):
        return mode
    parameter = not without & int(patches.PARAMETER)
    always = bool(without & int(patches.PARAMETER) and without & int(patches.VLBR))
    owns = can_be_passed(version, without) and (parameter or always)
    return attrs.evolve(mode, owner="guest" if owns else "perf", caps=owns and parameter)


def can_be_passed(version: int, without: int) -> bool:
    """Whether KVM hears of a PMU that can be passed through."""
    return version >= MEDIATED_VERSION and not without & int(patches.CAPABILITY | patches.HOST_CAPABILITY)


def carries(loaded: Mode, other: Mode) -> str:
    """Why no VM can have the vPMU of mode `other` where KVM was loaded for mode `loaded`; "" if one can.

    KVM has one parameter for all VMs; that they may differ is the laboratory's. It takes one kernel: a VM
    whose PMU is made of perf events is what every kernel falls back to, one without PMU as well.
    """
    if not other.hypervisor:
        return f"in mode {other.name} there is no hypervisor"
    if other.enable_pmu and not loaded.enable_pmu:
        return f"for mode {loaded.name} KVM is loaded with enable_pmu=0"
    if other.owns_pmu and other.kernel is not loaded.kernel:
        return (
            f"mode {loaded.name} is {loaded.kernel.name}, mode {other.name} {other.kernel.name}: "
            "both VMs have one kernel"
        )
    return ""


def vpmu_of(mode: Mode, version: int, without: int) -> int:
    """What a VM of this mode has on a host whose PMU has this version: VPMU_*, or NO_VPMU."""
    return VPMUS.index(as_loaded(mode, version, without).vpmu) if mode.enable_pmu else NO_VPMU


def load_module(S: Any, asked: Mode, version: int) -> None:
    """Set `config.owns_pmu` and `config.few_caps`; a mode that cannot be had is said in the log."""
    without = int(S.config.without)
    mode = as_loaded(asked, version, without)
    S.config.owns_pmu, S.config.few_caps = int(mode.owns_pmu), int(mode.few_caps)
    if asked.owns_pmu and asked.kernel.series and not without & int(patches.PARAMETER):
        if not can_be_passed(version, without):
            say(S, LOG_NO_PASSTHROUGH, version)
