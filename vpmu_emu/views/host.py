"""The host's part of a result: PMU, exits of KVM, perf events, tasks. Only looks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vpmu_emu.linux.printk import log_report
from vpmu_emu.linux.state import N_VMS, VPMU_EMULATED
from vpmu_emu.linux.watchdog import lockup_report
from vpmu_emu.tables.cpus import COST_NAMES
from vpmu_emu.tables.modes import VPMUS
from vpmu_emu.views.perf import closed_report, error_report, perf_report
from vpmu_emu.views.pmu import _after_put
from vpmu_emu.views.switch import switch_report
from vpmu_emu.views.tasks import tasks_report


def vms_report(S: Any) -> list[dict[str, Any]]:
    """What became of each VM: its vPMU, how long its guests ran, whether the host could profile them."""
    found = []
    for k in range(N_VMS):
        vm = S.vms[k]
        vcpus = [vcpu for vcpu in S.vcpus if int(vcpu.vm) == k and int(vcpu.entries)]
        if not vcpus:
            continue
        version = max(int(vcpu.pmu.version) for vcpu in vcpus)
        owns = int(vm.vpmu) != VPMU_EMULATED and version > 0
        found.append(
            {
                "vpmu": VPMUS[int(vm.vpmu)] if version else "none",
                "vcpus": len(vcpus),
                "entries": sum(int(vcpu.entries) for vcpu in vcpus),
                "guest_cycles": sum(int(vcpu.guest_t) for vcpu in vcpus) >> 4,
                "stolen_cycles": sum(int(vcpu.stolen_t) for vcpu in vcpus) >> 4,
                "profiled": "no" if owns else "yes",
                "events": sum(int(vcpu.pmu.created) for vcpu in vcpus),
            }
        )
    return found


def work_report(S: Any) -> dict[str, dict[str, int]]:
    """By row of isa/costs.toml: how often that work was done, and what it took in cycles."""
    counts = np.sum([host.work for host in S.percpu], axis=0)
    return {
        name: {"count": int(n), "cycles": int(n) * int(cost[0])}
        for name, n, cost in zip(COST_NAMES, counts, S.config.costs, strict=True)
        if n
    }


def report(S: Any, programs: Sequence[Any]) -> dict[str, Any]:
    """The host kernel's part of a result; `programs` are what its tasks run."""
    vcpu = S.vcpus[0]
    pmu = vcpu.pmu
    numbers = (
        "nmis", "timer_irqs", "vpmi_irqs", "pmis_misattributed", "nmis_unclaimed", "rotations", "throttles",
        "too_long",
    )  # fmt: skip
    kvm = ("created", "released", "resumed", "paused", "loads", "puts", "dirty_puts", "loaded_insns")
    after_put = {"hw": _after_put(S)} if int(pmu.puts) else {}
    return {
        **after_put,
        "work": work_report(S),
        "perf": {
            "events": perf_report(S),
            "errors": error_report(S),
            "closed": closed_report(S),
            **{key: sum(int(host[key]) for host in S.percpu) for key in numbers},
            "pmis_lost": sum(int(host.pmis_lost) for host in S.percpu)
            + sum(int(core.stats.pmis_lost) for core in S.cores),
            "max_sample_rate": int(S.config.max_sample_rate),
            "hz": int(S.config.hz),
        },
        "kvm": {
            "entries": int(vcpu.entries),
            "fastpaths": int(vcpu.fastpaths),
            "emulated_instructions": int(vcpu.emulated_insns),
            **{key: int(pmu[key]) for key in kvm},
            "eventsel_hw": [int(p.eventsel_hw) for p in pmu.pmcs[: int(pmu.nr_arch_gp_counters)]],
            "fixed_ctr_ctrl_hw": int(pmu.fixed_ctr_ctrl_hw),
            **switch_report(S),
        },
        "vms": vms_report(S),
        "tasks": tasks_report(S, programs),
        "watchdog": lockup_report(S),
        "log": log_report(S),
    }
