"""Why something does not happen: the chain that it hangs on, and the first link that is broken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from vpmu_emu.debug.counters import Counter, counters, pmu_version
from vpmu_emu.debug.pages import access_path, gate, vector_name
from vpmu_emu.debug.screen import Screen, Text, text
from vpmu_emu.debug.sections import (
    Look,
    decoded_words,
    events_since,
    named,
    place,
    source_place,
    vectors,
)
from vpmu_emu.errors import VpmuError
from vpmu_emu.linux import trace_kinds as lk
from vpmu_emu.linux.state import (
    CAUSE_NAMES,
    KVM_REQ_PMI,
    PERF_EVENT_STATE_ACTIVE,
    STATE_NAMES,
    VPMU_EMULATED,
)
from vpmu_emu.machine import msr_index
from vpmu_emu.machine import ring as mk
from vpmu_emu.machine.clock import tsc_value
from vpmu_emu.machine.lapic import LVT_PMI
from vpmu_emu.machine.processor_flags import X86_CR4_PCE
from vpmu_emu.numerals import shown
from vpmu_emu.tables.exits import exit_name
from vpmu_emu.views.access import Asked, intercept_state, told
from vpmu_emu.views.perf import counter_name, event_name, perf_report
from vpmu_emu.views.registers import lapic_off
from vpmu_emu.views.words import rdpmc_name, reprogram_words

OK, BROKEN, NOTE = "ok", "NO", "--"
_RETRY = (
    "perf retries it when the guest toggles IA32_PERF_GLOBAL_CTRL; "
    "that helps once a counter of the host is free"
)
_UNMASK = (
    "write IA32_X2APIC_LVT_PMI without bit 16 in the handler: "
    "the APIC sets that bit when it delivers a PMI (SDM 3B 20.2.4)"
)
_FAR = 1 << 32  # events: further than any period that a handler loads
_ACCESS_KINDS = {
    mk.TR_GUEST_RDMSR: "rdmsr", mk.TR_GUEST_WRMSR: "wrmsr", mk.TR_GUEST_WRMSR_BLIND: "wrmsr",
    mk.TR_GUEST_RDPMC: "rdpmc", mk.TR_RDPMC_FAULT: "rdpmc", mk.TR_PRIVILEGE: "", mk.TR_MSR_FAULT: "",
    mk.TR_MSR_DROPPED: "",
}  # fmt: skip
ACCESSES = ("rdmsr", "wrmsr", "rdpmc")


@attrs.frozen
class Link:
    """One link of a chain: what it is, whether it holds, and what mends it if it does not."""

    what: str
    state: str
    words: str
    remedy: str = ""


def first_broken(links: list[Link]) -> Link | None:
    """The first link that does not hold."""
    return next((link for link in links if link.state == BROKEN), None)


def show_links(screen: Screen, links: list[Link]) -> None:
    """A chain as rows, the broken link marked."""
    broken = first_broken(links)
    rows: list[list[Text | str]] = []
    for link in links:
        style = {OK: "good", BROKEN: "bad", NOTE: "dim"}[link.state]
        words = text(link.words, "bad" if link is broken else "")
        rows.append(
            [
                text(("=> " if link is broken else "   ") + link.state, style),
                text(link.what, "name"),
                words,
            ]
        )
    screen.columns(rows)


# --- counters -------------------------------------------------------------------------------------------
def counting_links(look: Look, it: Counter) -> Iterator[Link]:
    """What has to hold for a counter to count now."""
    system = look.system
    if it.index < 32:
        remedy = f"set bit 22 (EN) of {it.control}"
    else:
        remedy = (
            f"set bits {4 * (it.index - 32)} (os) or {4 * (it.index - 32) + 1} (usr) of {it.control}"
        )
    words = f"{it.control} = {it.control_value:#x}" + (f" ({it.event})" if it.event else "")
    yield Link("selector", OK if it.on else BROKEN, words + ("" if it.on else ": not enabled"), remedy)
    if it.uncounted:
        yield Link("event", BROKEN, it.uncounted, "vpmu info --cpu names the events of this model")
    cpl = look.processor().cpl
    counts_here = it.rings & (2 if cpl else 1)
    if it.rings in (1, 2):
        only = "CPL 0 only" if it.rings == 1 else "CPL 1 to 3 only"
        yield Link("rings", OK if counts_here else BROKEN, f"counts at {only}; the program is at CPL {cpl}",
                   f"set {'usr' if cpl else 'os'} too")  # fmt: skip
    elif not it.rings:
        yield Link("rings", BROKEN, "neither os nor usr is set: it counts in no ring", "set os or usr")
    if pmu_version(system) > 1:
        on = "set" if it.global_on else "clear"
        yield Link("GLOBAL_CTRL", OK if it.global_on else BROKEN, f"bit {it.index} is {on}",
                   f"set bit {it.index} of IA32_PERF_GLOBAL_CTRL")  # fmt: skip
    status = int(system.guest_pmu()["global_status"])
    if status & int(msr_index.GLOBAL_STATUS_COUNTERS_FROZEN):
        yield Link("freeze", BROKEN, "GLOBAL_STATUS.CTR_FRZ is set: a PMI has frozen every counter",
                   "write bit 59 of IA32_PERF_GLOBAL_STATUS_RESET in the handler")  # fmt: skip
    if system.has_host:
        yield from _host_links(look, it)


def _host_links(look: Look, it: Counter) -> Iterator[Link]:
    S = look.system.S
    vcpu = S.vcpus[0]
    pmu, pmc, vm = vcpu.pmu, vcpu.pmu.pmcs[it.row], S.vms[int(vcpu.vm)]
    denied = _filter_verdict(look, it.row)
    if int(vm.filter_on):
        words = {True: "denies its event", False: "lets it count", None: "has not been asked"}[denied]
        state = {True: BROKEN, False: OK, None: NOTE}[denied]
        yield Link("event filter", state, f"the VM's filter {words}", "see `info filter`")
    if int(vm.vpmu) != VPMU_EMULATED:
        given = (
            int(pmc.eventsel_hw)
            if it.index < 32
            else int(pmu.fixed_ctr_ctrl_hw) >> 4 * (it.index - 32) & 0xF
        )
        words = f"the hardware has {given:#x} for it"
        through = bool(S.config.all_passthrough)
        on = through or (given >> 22 & 1 if it.index < 32 else given & 3)
        yield Link(
            "selector in hardware", OK if on or not it.on else BROKEN, words, "see `info filter`"
        )
        where = "in the hardware" if int(pmu.guest_ctx_loaded) else "put away: the host runs"
        yield Link("guest's PMU context", NOTE, where)
        return
    event = int(pmc.perf_event)
    if event < 0:
        how = _last_reprogram(look, it.row)
        words = f"there is none{how}"
        needed = it.on and it.global_on
        waits = needed and int(pmu.reprogram_pmi) >> (it.index) & 1
        if waits:
            yield Link(
                "perf event", NOTE, "none yet: KVM makes it before the guest goes on (KVM_REQ_PMU)"
            )
        else:
            yield Link(
                "perf event",
                BROKEN if needed else NOTE,
                words,
                "see `info perf` and `events reprogram`",
            )
        return
    row = S.perf_events[event]
    state = STATE_NAMES[int(row.state)]
    words = f"event {int(row.id)} of the host, {event_name(S, row)}: {state}"
    if state == "ERROR":
        yield Link("perf event", BROKEN, f"{words}, {CAUSE_NAMES[int(row.error_cause)]}", _RETRY)
        holders = ", ".join(_holders(look))
        if holders:
            yield Link("who has them", NOTE, f"pinned to the whole CPU, and so before it: {holders}")
    elif int(row.state) == int(PERF_EVENT_STATE_ACTIVE):
        stopped = bool(int(row.stopped) or int(pmc.is_paused))
        on_it = f", on {counter_name(int(row.idx))} of the host" if int(row.idx) >= 0 else ""
        yield Link(
            "perf event", NOTE if stopped else OK, words + on_it + (", stopped" if stopped else "")
        )
    elif int(pmc.is_paused):
        yield Link("perf event", NOTE, words + ": KVM has paused it")
    else:
        # Its thread is off the CPU, or perf has put it aside: it counts again when it is scheduled in.
        inside = look.processor().inside
        yield Link(
            "perf event", BROKEN if inside else NOTE, words, "see `info perf`: who has the counters?"
        )


def _holders(look: Look) -> list[str]:
    counters_of: dict[str, list[str]] = {}
    for event in perf_report(look.system.S):
        if event["type"] == "pinned" and event["context"] == "cpu" and event["state"] == "ACTIVE":
            name = f"{event['name']} of {event['owner'].replace('kvm', 'KVM').replace('host', 'the host')}"
            counters_of.setdefault(name, []).append(event["hw_idx"] or "no counter")
    return [f"{name} (on {' '.join(on)})" for name, on in counters_of.items()]


def _last_reprogram(look: Look, row: int) -> str:
    found = events_since(look.system, 0, {lk.TR_REPROGRAM})
    found = found[found["a"] == row]
    return (
        f"; reprogram_counter() last said: {reprogram_words(int(found[-1]['c']))}" if len(found) else ""
    )


def _filter_verdict(look: Look, row: int) -> bool | None:
    """Whether check_pmu_event_filter() denied what a counter is to count, when KVM asked it last.

    None if it has not been asked, or so long ago that the trace has lost it.
    """
    found = events_since(look.system, 0, {lk.TR_FILTER})
    found = found[found["a"] == row]
    return not int(found[-1]["b"]) if len(found) else None


def chosen(look: Look, name: str) -> Counter:
    """The counter of this name; without one, the one that a question about PMIs is about.

    Raises:
        VpmuError: the program has no such counter, or none at all.
    """
    found = counters(look.system)
    if not found:
        raise VpmuError("why: this program has no counters (its PMU has version 0)")
    if name:
        named_one = next((it for it in found if it.name == name.lower()), None)
        if named_one is None:
            names = " ".join(it.name for it in found)
            raise VpmuError(f"why: the program has no counter {shown(name)} (allowed: {names})")
        return named_one
    return max(found, key=lambda it: (it.asks_pmi, it.on, it.overflowed, not it.idle, -it.index))


def why_counter(look: Look, screen: Screen, name: str) -> None:
    """Why a counter stands still."""
    it = chosen(look, name)
    links = list(counting_links(look, it))
    broken = first_broken(links)
    if broken is None:
        screen.line(
            text(f"{it.name} counts: nothing is in its way", "good"), f"; it holds {it.value:#x}"
        )
    else:
        screen.line(
            text(f"{it.name} stands still: {broken.what}: ", "title"), text(broken.words, "bad")
        )
    show_links(screen, links)
    _remedy(screen, broken)


def _remedy(screen: Screen, broken: Link | None) -> None:
    if broken is not None and broken.remedy:
        screen.line(text("remedy: ", "key"), broken.remedy)


# --- the next PMI ---------------------------------------------------------------------------------------
def pmi_links(look: Look, it: Counter) -> list[Link]:
    """What has to hold for the next overflow of a counter to reach the program's handler."""
    links = list(counting_links(look, it))
    bit = "bit 20 (INT)" if it.index < 32 else f"bit {4 * (it.index - 32) + 3} (PMI)"
    links.append(
        Link("PMI enable", OK if it.asks_pmi else BROKEN,
             f"{bit} of {it.control} is {'set' if it.asks_pmi else 'clear'}", f"set {bit} of {it.control}")
    )  # fmt: skip
    links += _lvt_links(look)
    if it.overflowed:
        words = f"bit {it.index} is set: it has overflowed, and no handler has cleared that yet"
        links.append(Link("GLOBAL_STATUS", NOTE, words))
    else:
        links.append(Link("GLOBAL_STATUS", OK, f"bit {it.index} is clear"))
    far = it.left >= _FAR
    links.append(
        Link("overflow", BROKEN if far else OK, f"{it.name} = {it.value:#x}: {it.left:,} events to go",
             f"load {it.name} with minus its period when it has overflowed")
    )  # fmt: skip
    return links


def _lvt_links(look: Look) -> Iterator[Link]:
    who = look.processor()
    lapic = who.lapic
    entry = int(lapic.lvt[LVT_PMI])
    if off := lapic_off(lapic):
        yield Link(
            "local APIC",
            BROKEN,
            f"off: {off}",
            "enable it: IA32_APIC_BASE[11], then IA32_X2APIC_SIVR[8]",
        )
    masked = bool(entry & int(msr_index.APIC_LVT_MASKED))
    mode, vector = entry >> 8 & 7, entry & 0xFF
    how = "NMI" if mode == 4 else f"vector {vector:#x}"
    # One that is on its way has set the mask, and needs no entry any more.
    coming = bool(who.nmi_pending) if mode == 4 else mode == 0 and vector in vectors(lapic.irr)
    words = f"{entry:#x}: {how}" + (f", masked{_last_pmi(look)}" if masked else "")
    words += "; a PMI is on its way" if coming else ""
    yield Link("LVTPC", OK if not masked else NOTE if coming else BROKEN, words, _UNMASK)
    if mode not in (0, 4):
        yield Link(
            "delivery mode", BROKEN, f"{mode} is neither fixed nor NMI", "0 or 4 in bits 10:8 of LVTPC"
        )
        return
    if mode == 0 and vector < 16:
        remedy = "a vector from 32 on in LVTPC"
        yield Link("vector", BROKEN, f"{vector} is below 16: the APIC drops it", remedy)
        return
    if mode == 4:
        vector = 2
        words = "blocked until IRET: an NMI handler runs" if who.nmi_blocked else "not blocked"
        yield Link("NMI", BROKEN if who.nmi_blocked else OK, words, "leave the NMI handler by IRETQ")
    else:
        serving = vectors(lapic.isr)
        high = max(serving, default=-1)
        blocked = high >= 0 and high >> 4 >= vector >> 4
        words = f"vector {high:#x} is in service, no EOI yet" if blocked else "none of this priority"
        yield Link(
            "in service", BROKEN if blocked else OK, words, "write IA32_X2APIC_EOI at the handler's end"
        )
        tpr = int(lapic.tpr)
        if tpr >> 4 >= vector >> 4:
            yield Link(
                "TPR", BROKEN, f"{tpr:#x} holds back vector {vector:#x}", "lower IA32_X2APIC_TPR"
            )
        on = who.interrupts_on
        shadow = f", for one more instruction after {who.shadow}" if who.shadow else ""
        words = f"RFLAGS.IF is {int(on)}{shadow}"
        yield Link("interrupts", OK if on else BROKEN, words, "STI, or IRETQ to code with IF set")
    found = gate(look, vector)
    leads = found if isinstance(found, str) else f"leads to {place(look, found[1])}"
    words = f"{vector_name(vector)}: {leads}"
    yield Link("IDT", BROKEN if isinstance(found, str) else OK, words, "load an IDT with a gate for it")
    if look.system.has_host and int(look.system.S.vcpus[0].requests) & int(KVM_REQ_PMI):
        yield Link("KVM_REQ_PMI", NOTE, "a PMI waits for the next VM entry")


def _last_pmi(look: Look) -> str:
    kind = lk.TR_PMI_INJECT if look.system.has_host else mk.TR_PMI_RAISE
    found = events_since(look.system, 0, {kind})
    sent = [e for e in found if int(e["b" if look.system.has_host else "c"])]
    return f" since the PMI at tsc {tsc_value(look.system.core, int(sent[-1]['t'])):,}" if sent else ""


def why_pmi(look: Look, screen: Screen, name: str = "") -> None:
    """Why no PMI comes, or no second one."""
    if not pmu_version(look.system):
        screen.line(text("No PMI comes: ", "title"), "the program has no PMU (version 0 in its CPUID)")
        return
    it = chosen(look, name)
    links = pmi_links(look, it)
    broken = first_broken(links)
    taken = int(look.system.core.stats.pmis)
    so_far = f"{taken} so far" if taken else "none so far"
    if broken is None:
        screen.line(text("Nothing is in the way of the next PMI", "good"),
                    f" ({so_far}): {it.name} overflows in {it.left:,} events")  # fmt: skip
    else:
        which = "second PMI" if taken == 1 else "further PMI" if taken else "PMI"
        handling = any(link.what == "in service" and link.state == BROKEN for link in links)
        so_far += ", its handler is running" if handling or look.processor().nmi_blocked else ""
        screen.line(text(f"No {which} comes from {it.name} ({so_far}): {broken.what}: ", "title"),
                    text(broken.words, "bad"))  # fmt: skip
    show_links(screen, links)
    _remedy(screen, broken)


# --- accesses -------------------------------------------------------------------------------------------
def next_access(look: Look) -> tuple[str, int, int] | None:
    """(action, ECX, EDX:EAX) of the next instruction if it is an access, else None."""
    code = look.memory(look.session.rip, 2)
    action = {b"\x0f\x30": "wrmsr", b"\x0f\x32": "rdmsr", b"\x0f\x33": "rdpmc"}.get(code)
    if action is None:
        return None
    registers = look.session.registers()
    low, high = registers["rax"] & 0xFFFF_FFFF, registers["rdx"] & 0xFFFF_FFFF
    return action, registers["rcx"] & 0xFFFF_FFFF, high << 32 | low


def last_access(look: Look, action: str) -> tuple[Any, int]:
    """(events from an access on to where the program went on, which of them it is): the last one.

    Raises:
        VpmuError: there was none.
    """
    found = events_since(look.system, 0)
    kinds = [int(kind) for kind in found["kind"]]
    for at in range(len(kinds) - 1, -1, -1):
        if _action_of(found[at]) == action:
            break
    else:
        raise VpmuError(
            f"why {action}: the program has done none yet, and the next instruction is none"
        )
    rip = int(found[at]["rip"])
    first = at
    own = (mk.TR_INTERCEPT, mk.TR_VM_EXIT)
    if look.system.has_host:
        for k in range(at - 1, max(-1, at - 400), -1):
            if kinds[k] == mk.TR_VM_ENTRY:
                break
            if kinds[k] in own and int(found[k]["rip"]) == rip:
                first = k
    last = at + 1
    if any(kinds[k] == mk.TR_VM_EXIT for k in range(first, at)):
        while last < len(kinds) and kinds[last - 1] != mk.TR_VM_ENTRY:
            last += 1
    elif last < len(kinds) and kinds[last] == mk.TR_EXCEPTION:
        last += 1
    return found[first:last], at - first


def _action_of(event: Any) -> str:
    kind = int(event["kind"])
    if kind == mk.TR_MSR_FAULT or kind == mk.TR_MSR_DROPPED:
        return "wrmsr" if int(event["c"]) & 1 else "rdmsr"
    if kind == mk.TR_PRIVILEGE:
        return mk.ACCESS_NAMES[int(event["a"])]
    return _ACCESS_KINDS.get(kind, "")


def why_access(look: Look, screen: Screen, action: str, last: bool) -> None:
    """What becomes of the next access, or became of the last one, and whether it exits.

    Args:
        action: one of ACCESSES.
        last: never mind the next instruction.

    Raises:
        VpmuError: there is neither.
    """
    system = look.system
    who = look.processor()
    coming = None if last else next_access(look)
    if coming is not None and coming[0] == action and look.stop is not None and look.stop.ended:
        coming = None
    if coming is not None and coming[0] == action:
        events = look.session.rehearse()
        _, index, value = coming
        rip, tense, cpl = look.session.rip, "next", who.cpl
        value = value if action == "wrmsr" else 0
    else:
        events, at = last_access(look, action)
        event = events[at]
        rip, tense = int(event["rip"]), "last"
        kind = int(event["kind"])
        index = int(event["a"]) if kind != mk.TR_PRIVILEGE else -1
        value = int(event["b"]) if action == "wrmsr" and kind != mk.TR_PRIVILEGE else 0
        cpl = int(event["b"]) if kind == mk.TR_PRIVILEGE else who.cpl
    met = intercept_state(system.S, system.model) if system.has_host else None
    pce = int(bool(who.cr4 & int(X86_CR4_PCE)))
    asked = Asked(action, index, value, cpl, pce, system.has_host, system.model.events)
    if met is not None:
        asked = attrs.evolve(asked, met=met)
    exits = [e for e in events if int(e["kind"]) == mk.TR_VM_EXIT and int(e["rip"]) == rip]
    what = rdpmc_name(index) if action == "rdpmc" else named(index)
    if index < 0:
        what = "an MSR"
    if action == "wrmsr" and index >= 0:
        what += f" = {value:#x}{decoded_words(index, value, system.model.events)}"
    where = source_place(look, rip)
    head = (
        text(f"the {tense} {action}", "key")
        + f", {what}"
        + (f" at {where}" if where else f" at {rip:#x}")
    )
    screen.line(head)
    steps = told(asked, events, system.S)
    screen.line(_verdict(look, tense, action, index, exits, steps))
    rows: list[list[Text | str]] = [
        [text("=> " if step.decides else "   ", "here") + text(step.what, "name"), step.verdict]
        for step in steps
    ]
    screen.columns(rows)


def _verdict(
    look: Look, tense: str, action: str, index: int, exits: list[Any], steps: list[Any]
) -> Text:
    verb = "exits" if tense == "next" else "exited"
    no = "does not exit" if tense == "next" else "did not exit"
    by = {step.what: step.verdict for step in steps}
    if not look.system.has_host:
        return text(f"it {no}: ", "title") + "there is no hypervisor below the program"
    if "#GP before anything else" in by.get("privilege", ""):
        return text(f"it {no}: ", "title") + text(by["privilege"], "bad")
    why = next((f"{it} {by[it]}" for it in ("MSR bitmap", "RDPMC exiting") if it in by), None)
    if why is not None:
        why = why.replace(": no exit;", ";").replace(": the guest exits;", ";")
    if why is None and action != "rdpmc" and index >= 0:
        why = str(access_path(look, index, action == "wrmsr"))
    if exits:
        return text(f"it {verb}, {exit_name(int(exits[0]['a']) & 0xFFFF)}: ", "title") + (why or "")
    return text(f"it {no}: ", "title") + (why or "nothing intercepts it")
