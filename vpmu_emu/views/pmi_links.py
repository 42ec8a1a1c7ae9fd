"""From a counter to its handler a PMI passes many links; here is which of them is broken. Only looks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs

from vpmu_emu.linux.state import N_GP_PMC, PERF_EVENT_STATE_ERROR
from vpmu_emu.machine import msr_index
from vpmu_emu.machine.lapic import LVT_PMI
from vpmu_emu.machine.vmcs import NMI_BLOCKING
from vpmu_emu.views.registers import core_of, interruptibility

_MASKED = int(msr_index.APIC_LVT_MASKED)
_EN = int(msr_index.ARCH_PERFMON_EVENTSEL_ENABLE)
_INT = int(msr_index.ARCH_PERFMON_EVENTSEL_INT)
_OS, _USR = int(msr_index.ARCH_PERFMON_EVENTSEL_OS), int(msr_index.ARCH_PERFMON_EVENTSEL_USR)
_FIXED_OS, _FIXED_USR, _FIXED_PMI = 1, 2, 8


@attrs.frozen
class Counter:
    """A counter that is on in its own control register.

    Attributes:
        name, bit: what it is called, and its bit in GLOBAL_CTRL and GLOBAL_STATUS.
        interrupts: whether it wants a PMI.
        rings: 1 CPL 0, 2 CPL 3.
        left: events to its overflow.
        denied: why nothing counts although it is on, "" if something does.
    """

    name: str
    bit: int
    interrupts: bool
    rings: int
    left: int
    denied: str


@attrs.frozen
class Seen:
    """What of one processor, as its program sees it, decides about PMIs.

    Attributes:
        counters: those that are on.
        global_ctrl, global_status: None, 0 where there are none.
        lapic: its local APIC.
        rflags_if, nmi_blocked, cpl: of the processor.
        pmis: how many it has had.
    """

    counters: tuple[Counter, ...]
    global_ctrl: int | None
    global_status: int
    lapic: Any
    rflags_if: bool
    nmi_blocked: bool
    cpl: int
    pmis: int


def seen(system: Any, k: int = 0) -> Seen:
    """Core k of a machine without a host, else the first vCPU."""
    S = system.S
    flags = system.registers()["rflags"]
    uncounted = system.uncounted()
    if not system.has_host:
        core = system.cores[k]
        pmu = system.hardware_pmu(k)
        denied = dict.fromkeys(uncounted, "") if k else uncounted
        masks = int(core.pmu.gp_mask), int(core.pmu.fixed_mask)
        return Seen(
            _counters(pmu, masks, denied), pmu["global_ctrl"] if int(core.pmu.version) > 1 else None,
            pmu["global_status"], core.lapic, bool((int(core.rflags) if k else flags) >> 9 & 1),
            bool(core.nmi_blocked), int(core.cpl), int(core.stats.pmis),
        )  # fmt: skip
    vcpu, cpu = S.vcpus[0], core_of(S)
    core = S.cores[max(cpu, 0)]
    inside = cpu >= 0 and bool(core.vmx.nonroot)
    blocked = bool(core.nmi_blocked) if inside else bool(interruptibility(S, system.M) & int(NMI_BLOCKING))
    pmu = system.guest_pmu()
    mask = int(vcpu.pmu.counter_bitmask)
    return Seen(
        _counters(pmu, (mask, mask), held(S, pmu) | uncounted),
        pmu["global_ctrl"] if int(vcpu.pmu.version) > 1 else None, pmu["global_status"],
        core.vapic if cpu >= 0 else vcpu.vapic, bool(flags >> 9 & 1), blocked,
        int(core.cpl) if inside else int(vcpu.cpl), sum(int(each.stats.pmis) for each in system.cores),
    )  # fmt: skip


def _counters(
    pmu: Mapping[str, Any], masks: tuple[int, int], denied: Mapping[str, str]
) -> tuple[Counter, ...]:
    found = []
    for i, (selector, value) in enumerate(zip(pmu["eventsel"], pmu["pmc"], strict=True)):
        if selector & _EN:
            rings = bool(selector & _OS) | bool(selector & _USR) << 1
            left = (masks[0] + 1 - value) & masks[0] or masks[0] + 1
            name = f"pmc{i}"
            found.append(Counter(name, i, bool(selector & _INT), rings, left, denied.get(name, "")))
    for j, value in enumerate(pmu["fixed"]):
        control = pmu["fixed_ctr_ctrl"] >> 4 * j & 0xF
        if rings := control & (_FIXED_OS | _FIXED_USR):
            left = (masks[1] + 1 - value) & masks[1] or masks[1] + 1
            name, wants = f"fixed{j}", bool(control & _FIXED_PMI)
            found.append(Counter(name, 32 + j, wants, rings, left, denied.get(name, "")))
    return tuple(found)


def held(S: Any, pmu: Mapping[str, Any]) -> dict[str, str]:
    """Counters of the first vCPU for which KVM has nothing that counts."""
    vcpu = S.vcpus[0]
    found = {}
    pmcs = vcpu.pmu.pmcs
    names = {f"pmc{i}": i for i in range(len(pmu["eventsel"]))}
    names |= {f"fixed{j}": N_GP_PMC + j for j in range(len(pmu["fixed"]))}
    owns = bool(vcpu.pmu.loads)
    for name, i in names.items():
        event = int(pmcs[i].perf_event)
        if event >= 0 and int(S.perf_events[event].state) == PERF_EVENT_STATE_ERROR:
            found[name] = "its perf event is in ERROR: the host's own events have its counter"
        elif not int(S.vms[int(vcpu.vm)].filter_on):
            continue
        elif owns and i < N_GP_PMC:
            if not int(pmcs[i].eventsel_hw) & _EN:
                found[name] = "the event filter denies it"
        elif owns:
            if not int(vcpu.pmu.fixed_ctr_ctrl_hw) >> 4 * (i - N_GP_PMC) & 3:
                found[name] = "the event filter denies it"
        elif event < 0:
            found[name] = "the event filter denies it"
    return found


def broken_links(cpu: Seen, halted: bool) -> Iterator[str]:
    """Why a PMI for which the counters are set up does not reach its handler; nothing if all is well.

    Args:
        cpu: from `seen`.
        halted: the program waits and does nothing else; else it may be on its way through a handler.
    """
    lvt = int(cpu.lapic.lvt[LVT_PMI])
    wanting = [counter for counter in cpu.counters if counter.interrupts]
    if not wanting:
        if cpu.counters and not lvt & _MASKED:
            names = _listed(counter.name for counter in cpu.counters)
            not_set = f"{'are' if len(cpu.counters) > 1 else 'is'} not set to interrupt"
            yield f"no PMI can come: LVTPC {lvt:#x} is ready for it, but {names} {not_set} (INT, PMI)"
        return
    over = [counter for counter in wanting if cpu.global_status >> counter.bit & 1]
    serving = bool(_has(cpu.lapic.isr, lvt & 0xFF))
    nmi = lvt & int(msr_index.APIC_MODE_MASK) == int(msr_index.APIC_DM_NMI)
    handled = cpu.nmi_blocked if nmi else serving
    if handled and not halted:
        return
    if over:
        have = f"{_listed(c.name for c in over)} {'have' if len(over) > 1 else 'has'} overflowed"
        status = f"{have} (GLOBAL_STATUS {cpu.global_status:#x})"
        if cut := _cut(cpu, lvt):
            yield f"{status}, but {cut}"
        elif halted:
            yield f"{status}, and the PMI of that is gone: it was taken, or LVTPC was masked when it came"
        frozen = cpu.global_status & int(msr_index.GLOBAL_STATUS_COUNTERS_FROZEN)
        if frozen:
            yield "GLOBAL_STATUS.CTR_FRZ is set: nothing counts until a write to STATUS_RESET clears it"
        return
    for counter in wanting:
        stands = _stands(cpu, counter)
        if not stands and (halted or not cpu.pmis):  # else it is on its way to the next one
            stands = f"{counter.left:,} event{'s' * (counter.left != 1)} are left"
            stands += ", and nothing counts while the processor is halted" if halted else ""
        if stands:
            yield f"{counter.name} is set to interrupt and has not overflowed: {stands}"
    if cut := _cut(cpu, lvt):
        yield f"a PMI would not come through: {cut}"


def _cut(cpu: Seen, lvt: int) -> str:
    """What is between an overflow and its handler, "" if nothing is."""
    lapic = cpu.lapic
    mode, vector = lvt & int(msr_index.APIC_MODE_MASK), lvt & 0xFF
    nmi = mode == int(msr_index.APIC_DM_NMI)
    if not int(lapic.apic_base) & int(msr_index.MSR_IA32_APICBASE_ENABLE):
        return f"the local APIC is disabled (IA32_APIC_BASE {int(lapic.apic_base):#x})"
    if not nmi and _has(lapic.irr, vector):
        return _not_taken(cpu, vector)
    if not int(lapic.spiv) & int(msr_index.APIC_SPIV_APIC_ENABLED):
        return f"the local APIC is disabled by software (SVR {int(lapic.spiv):#x}, bit 8)"
    if lvt == _MASKED:
        return f"LVTPC {lvt:#x} is masked, as after a reset: nothing has set it up"
    # Of these the message is dropped, and yet sets the mask.
    if not nmi and mode != int(msr_index.APIC_DM_FIXED):
        return f"LVTPC {lvt:#x} has delivery mode {mode >> 8}, neither fixed (0) nor NMI (4)"
    if not nmi and vector < 16:
        return f"LVTPC {lvt:#x} has vector {vector}, which no interrupt may have"
    if lvt & _MASKED:
        return f"LVTPC {lvt:#x} is masked: a PMI sets the mask, and its handler has to clear it"
    if nmi:
        return "NMIs are blocked until an IRET" if cpu.nmi_blocked else ""
    return "" if cpu.rflags_if else "interrupts are off (IF = 0)"


def _not_taken(cpu: Seen, vector: int) -> str:
    lapic = cpu.lapic
    serving = max((v for v in range(256) if _has(lapic.isr, v)), default=-1)
    if serving >> 4 >= vector >> 4:
        return f"its vector {vector:#x} waits: {serving:#x} is in service until its handler writes EOI"
    if int(lapic.tpr) >> 4 & 0xF >= vector >> 4:
        return f"its vector {vector:#x} waits: the task priority (TPR {int(lapic.tpr):#x}) is not below it"
    if not cpu.rflags_if:
        return f"its vector {vector:#x} waits: interrupts are off (IF = 0)"
    return ""


def _stands(cpu: Seen, counter: Counter) -> str:
    """Why a counter cannot count here, "" if it can."""
    if cpu.global_ctrl is not None and not cpu.global_ctrl >> counter.bit & 1:
        return f"GLOBAL_CTRL {cpu.global_ctrl:#x} has it off"
    if counter.denied:
        return counter.denied
    if not counter.rings & (2 if cpu.cpl else 1):
        rings = ("no CPL", "CPL 0 only", "CPL 3 only")[counter.rings]
        return f"it counts at {rings}, and this is CPL {cpu.cpl}"
    return ""


def _has(words: Any, vector: int) -> int:
    return int(words[vector >> 6]) >> (vector & 63) & 1


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else "".join(names)
