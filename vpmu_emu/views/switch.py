"""What switches of guests' PMU context were made of, and how long the host saw nothing. Only looks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from vpmu_emu.linux import trace_kinds as lk
from vpmu_emu.linux.state import ACCESS_NAMES, SWITCH_NAMES, VPMU_EMULATED
from vpmu_emu.machine import ring as mk
from vpmu_emu.machine.state import NEVER
from vpmu_emu.tables.cpus import COST_NAMES
from vpmu_emu.tables.exits import exit_name
from vpmu_emu.tables.modes import SWITCH_POLICIES
from vpmu_emu.tables.msrs import msr_name
from vpmu_emu.views.access import Step
from vpmu_emu.views.words import counter_of_bit, rdpmc_name

_HOST = {mk.TR_HOST_RDMSR: "rdmsr", mk.TR_HOST_WRMSR: "wrmsr", mk.TR_HOST_RDPMC: "rdpmc"}
_GLOBAL_CTRL = "IA32_PERF_GLOBAL_CTRL"
OUT, IN = "context out", "context in"


def switch_report(S: Any) -> dict[str, Any]:
    """By part of a switch: how many, cycles, accesses with theirs; {} if no guest had the PMU for itself.

    All cores together; `host_blind` is the time in which a guest had the PMU, and its share of all time.
    """
    online = [(core, host) for core, host in zip(S.cores, S.percpu, strict=True) if int(host.online)]
    owned = any(vm.used and int(vm.vpmu) != VPMU_EMULATED for vm in S.vms)
    if not owned and not any(host.switch_n.any() for _, host in online):
        return {}
    fields = ("switch_n", "switch_time", "switch_ops")
    n, time, accesses = (np.sum([host[field] for _, host in online], axis=0) for field in fields)
    prices = _prices(S)
    parts: dict[str, Any] = {}
    for part, name in enumerate(SWITCH_NAMES):
        row: dict[str, Any] = {"count": int(n[part]), "cycles": int(time[part]) >> 4}
        for kind, access in enumerate(ACCESS_NAMES):
            made = int(accesses[part][kind])
            row[access] = {"count": made, "cycles": made * prices[access]}
        parts[name] = row
    blind = sum(pmu_away(core, host) for core, host in online)
    whole = sum(int(core.t) for core, _ in online)
    share = round(blind / whole, 6) if whole else 0.0
    policy = SWITCH_POLICIES[int(S.config.switch)]
    return {"switch": {"policy": policy, **parts, "host_blind": {"cycles": blind >> 4, "share": share}}}


def pmu_away(core: Any, host: Any) -> int:
    """Time in which a guest had this core's PMU, in 1/16 cycle."""
    since = int(host.pmu_away_since)
    return int(host.pmu_away) + (int(core.t) - since if since != NEVER else 0)


def _prices(S: Any) -> dict[str, int]:
    return {name: int(S.config.costs[COST_NAMES.index(name), 0]) for name in ACCESS_NAMES}


# --- one switch, access by access -----------------------------------------------------------------------
def sequence(
    events: Iterable[Any], S: Any, before: Mapping[str, Any], after: Mapping[str, Any]
) -> list[Step]:
    """A VM exit and the entry behind it in words: every access to an MSR of the PMU with its cycles.

    Args:
        events: the trace from the instruction that exits to the next one that the guest runs.
        S: the record.
        before, after: `switch_report` at these two instructions.
    """
    return [*_accesses(list(events), S), *_sums(before["switch"], after["switch"])]


def _accesses(events: list[Any], S: Any) -> Iterator[Step]:
    prices = _prices(S)
    leaves = any(int(e["kind"]) == lk.TR_PMU_PUT for e in events)
    place = ""
    for e in events:
        kind, a, b, c = (int(e[key]) for key in ("kind", "a", "b", "c"))
        if kind == mk.TR_VM_EXIT:
            yield Step("VM-exit", exit_name(a))
            place = OUT if leaves else "KVM"
        elif kind in _HOST:
            name = _HOST[kind]
            register = f"{rdpmc_name(a)}" if name == "rdpmc" else msr_name(a)
            relation = "=" if name == "wrmsr" else "gives"
            yield Step(place, f"{name.upper()} {register} {relation} {b:#x}: {prices[name]} cycles")
        elif kind == lk.TR_VMCS_ACCESS:
            name = ACCESS_NAMES[c]
            relation = "=" if name == "vmwrite" else "gives"
            yield Step(place, f"{name.upper()} {_GLOBAL_CTRL} {relation} {b:#x}: {prices[name]} cycles")
        elif kind == lk.TR_PMU_PUT:
            place = "host"
        elif kind == lk.TR_PMU_LOAD:
            place = IN
        elif kind == lk.TR_EMULATED:
            names = " ".join(counter_of_bit(i) for i in range(64) if a >> i & 1)
            yield Step("software count", f"kvm_pmu_trigger_event: the instruction counts in {names}")
        elif kind == mk.TR_VM_ENTRY:
            yield Step("VM-entry", "the guest goes on")
            place = ""


def _sums(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Step]:
    """What each part of the switch was made of."""
    total = 0
    for part, what in (("put", OUT), ("load", IN), ("exit", "at VM exit"), ("entry", "at VM entry")):
        grown = {
            name: after[part][name]["count"] - before[part][name]["count"] for name in ACCESS_NAMES
        }
        cycles = after[part]["cycles"] - before[part]["cycles"]
        total += cycles
        if after[part]["count"] == before[part]["count"]:
            if part in ("put", "load"):
                yield Step(f"{what}, in all", "nothing: it is not switched here")
            continue
        made = ", ".join(f"{n} {name.upper()}" for name, n in grown.items() if n)
        yield Step(f"{what}, in all", f"{made}; {cycles} cycles" if made else f"{cycles} cycles")
    yield Step("the switch", f"{total} cycles, policy {after['policy']}")
