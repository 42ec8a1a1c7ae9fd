"""What `info` and `msr` show: tables of the processor and of KVM, decoded field by field."""

from __future__ import annotations

from typing import Any

from vpmu_emu.debug.screen import Screen, Text, join, text
from vpmu_emu.debug.sections import LVT_NAMES, Look, decoded_words, lvt_words, place, vectors
from vpmu_emu.errors import ConfigError, VpmuError
from vpmu_emu.linux.state import KVM_PMU_EVENT_ALLOW, VPMU_EMULATED
from vpmu_emu.machine import msr_index
from vpmu_emu.machine.clock import tsc_value
from vpmu_emu.machine.state import BEYOND
from vpmu_emu.numerals import shown, whole
from vpmu_emu.tables.events import event_by_code
from vpmu_emu.tables.modes import VPMUS
from vpmu_emu.tables.msrs import Field, MsrRow, by_name, decode_value, msr_name, row_of
from vpmu_emu.tables.passed import rule_of, rule_words
from vpmu_emu.tables.vmcs import GROUPS
from vpmu_emu.views.access import intercept_state
from vpmu_emu.views.guest import bitmap_place, intercepted, is_valid, vmcs_values
from vpmu_emu.views.registers import lapic_mode
from vpmu_emu.views.words import EXCEPTION_NAMES

INTR_TYPES = {0: "external interrupt", 2: "NMI", 3: "exception", 4: "INT n", 6: "INT3 or INTO"}


def vector_name(vector: int) -> str:
    """`#GP (13)`, `vector 0x40`."""
    return f"{EXCEPTION_NAMES[vector]} ({vector})" if vector in EXCEPTION_NAMES else f"vector {vector:#x}"


def intr_words(info: int) -> str:
    """Interruption information of a VMCS in words."""
    if not is_valid(info):
        return "none"
    return f"{INTR_TYPES.get(info >> 8 & 7, 'event')}, {vector_name(info & 0xFF)}"


def parse_msr(name: str) -> int:
    """An MSR by name or number.

    Raises:
        VpmuError: none is called so, or more than ECX holds.
    """
    value = whole(name)
    if value is None:
        return by_name(name)
    if not 0 <= value < 1 << 32:
        raise ConfigError("msr", f"{shown(name)} is not what ECX can hold", "0 to 0xffffffff")
    return value


# --- msr NAME -------------------------------------------------------------------------------------------
def msr_page(look: Look, screen: Screen, index: int, value: int | None) -> None:
    """One MSR: its value by field, who handles its accesses, how often there were some.

    Args:
        value: what the guest's RDMSR gives now, None if it would be #GP.
    """
    found = row_of(index)
    events = look.system.model.events
    if found is None:
        screen.line(
            text(f"{index:#x}", "title"), ": no MSR of the table; RDMSR and WRMSR of it are #GP"
        )
    else:
        row, n = found
        also = [row.instance_name(n, other) for other in (*row.aliases, *row.kernel)]
        screen.line(
            text(row.instance_name(n), "title"), f" ({index:#x})",
            text(f", {', '.join(also)}" if also else "", "dim"), f": {row.doc}",
        )  # fmt: skip
    if value is None:
        screen.line("  ", text("RDMSR would be #GP", "bad"))
    else:
        screen.line("  value ", text(f"{value:#x}", "title"), decoded_words(index, value, events))
        if found is not None:
            _fields(screen, found[0], index, value, events)
    for writes, verb in ((False, "RDMSR"), (True, "WRMSR")):
        screen.line(f"  {verb} ", access_path(look, index, writes))
    statistics = look.system.msr_statistics().get(msr_name(index))
    if statistics:
        screen.line("  so far ", ", ".join(f"{n} {what}" for what, n in statistics.items()))


def _fields(screen: Screen, row: MsrRow, index: int, value: int, events: str) -> None:
    ranges = {field.name: _range(field) for field in row.fields}
    rows: list[list[Text | str]] = []
    for name, bits, words in decode_value(index, value, events):
        style = "" if bits else "dim"
        rows.append([text(ranges.get(name, ""), "dim"), text(name, "name" if bits else "dim"),
                     text(f"{bits:#x}", style), text(words, style)])  # fmt: skip
    screen.columns(rows, indent=4)


def _range(field: Field) -> str:
    return f"[{field.high}:{field.low}]" if field.high > field.low else f"[{field.low}]"


def access_path(look: Look, index: int, writes: bool) -> Text:
    """Whether an access exits now, and what decides that."""
    system = look.system
    if not system.has_host:
        return text("does not exit: the program has no hypervisor below it")
    vpmu = VPMUS[int(system.S.vms[int(system.S.vcpus[0].vm)].vpmu)]
    met = intercept_state(system.S, system.model)
    rule = rule_of(met.column(vpmu), index, writes)
    found = row_of(index)
    why = rule_words(rule, met.names() | {"n": found[1] if found else 0})
    at = bitmap_place(index, writes)
    exits = intercepted(system.S, system.M, 0, index, writes)
    verdict = text("exits", "changed") if exits else text("does not exit", "good")
    if at is None:
        return verdict + ": the MSR bitmap has no bit for it"
    return verdict + f": MSR bitmap byte {at[0]:#x} bit {at[1]} is {int(exits)}; {why}"


# --- lapic ----------------------------------------------------------------------------------------------
def lapic_page(look: Look, screen: Screen) -> None:
    """Every register of the local APIC."""
    who = look.processor()
    it = who.lapic
    base, spiv = int(it.apic_base), int(it.spiv)
    screen.banner("local APIC", "of the guest, KVM's" if look.system.has_host else "of the core")
    tpr = int(it.tpr)
    software = "on" if spiv & int(msr_index.APIC_SPIV_APIC_ENABLED) else "off by software: bit 8 is 0"
    on = "on" if base & int(msr_index.MSR_IA32_APICBASE_ENABLE) else "off: bit 11 is 0"
    rows: list[list[Text | str]] = [
        ["APIC_BASE", f"{base:#x}", f"{lapic_mode(it)}, {on}"],
        ["SPIV", f"{spiv:#x}", f"{software}, spurious vector {spiv & 0xFF:#x}"],
        ["ID", f"{int(it.id):#x}", ""],
        ["TPR", f"{tpr:#x}", f"vectors below {(tpr & 0xF0) + 0x10:#x} wait" if tpr else ""],
        ["ICR", f"{int(it.icr):#x}", ""],
        ["ESR", f"{int(it.esr):#x}", ""],
    ]
    screen.columns(rows, indent=2)
    for name, value in zip(LVT_NAMES, it.lvt, strict=True):
        style = "dim" if int(value) >> 16 & 1 else ""
        screen.line(text(f"  LVT {name:<8} {int(value):#x}  {lvt_words(name, int(value))}", style))
    for name, words in (("IRR", it.irr), ("ISR", it.isr)):
        names = " ".join(f"{v:#x}" for v in vectors(words))
        screen.line(
            f"  {name}  {names or 'none'}", "  (requested)" if name == "IRR" else "  (in service)"
        )
    at, now = int(it.timer_at), int(look.system.core.t)
    due = f"fires in {(at - now) >> 4:,} cycles" if at < int(BEYOND) else "not running"
    deadline = f", TSC deadline {int(it.tsc_deadline):#x}" if int(it.tsc_deadline) else ""
    screen.line(
        f"  timer  {due}; initial count {int(it.init_count):#x}, divide {int(it.divide):#x}{deadline}"
    )


# --- idt, gdt -------------------------------------------------------------------------------------------
def gate(look: Look, vector: int) -> tuple[str, int] | str:
    """(what kind of gate, where it leads) of a vector, or why nothing can go through it."""
    base, limit = look.processor().idt
    if 16 * vector + 15 > limit or not limit:
        return "no IDT is loaded" if not limit else f"beyond the limit {limit:#x} of the IDT"
    code = look.memory(base + 16 * vector, 16)
    if len(code) < 16:
        return f"the IDT at {base:#x} lies in no memory"
    low, high = int.from_bytes(code[:8], "little"), int.from_bytes(code[8:], "little")
    kind = low >> 40 & 0x1F
    if not low >> 47 & 1:
        return "gate not present"
    if kind not in (0xE, 0xF):
        return f"gate of type {kind:#x}, which is none"
    target = (low & 0xFFFF) | (low >> 48 & 0xFFFF) << 16 | (high & 0xFFFF_FFFF) << 32
    words = "interrupt gate" if kind == 0xE else "trap gate"
    words += f", selector {low >> 16 & 0xFFFF:#x}, DPL {low >> 45 & 3}"
    ist = low >> 32 & 7
    return words + (f", IST {ist}" if ist else ""), target


def idt_page(look: Look, screen: Screen) -> None:
    """The gates that are present."""
    base, limit = look.processor().idt
    screen.banner("IDT", f"base {base:#x} limit {limit:#x}")
    if not limit:
        screen.line(" none is loaded: the next exception or interrupt is a triple fault")
        return
    rows: list[list[Text | str]] = []
    absent = 0
    for vector in range(min(256, (limit + 1) // 16)):
        found = gate(look, vector)
        if isinstance(found, str):
            absent += found == "gate not present"
            if found != "gate not present":
                rows.append([f" {vector:#04x}", vector_name(vector), text(found, "bad")])
            continue
        words, target = found
        rows.append([f" {vector:#04x}", text(vector_name(vector), "name"), place(look, target), words])
    screen.columns(rows)
    screen.line(f" {absent} gates are not present")


def gdt_page(look: Look, screen: Screen) -> None:
    """The descriptors."""
    who = look.processor()
    base, limit = who.gdt
    screen.banner("GDT", f"base {base:#x} limit {limit:#x}")
    loaded: dict[int, list[str]] = {}
    for name, selector in (*zip(("es", "cs", "ss", "ds", "fs", "gs"), who.selectors), ("tr", who.tr)):
        loaded.setdefault(selector & ~7, []).append(name)
    rows: list[list[Text | str]] = []
    at = 0
    while at + 7 <= limit and at < 1 << 16:
        data = look.memory(base + at, 8)
        if len(data) < 8:
            break
        raw = int.from_bytes(data, "little")
        words, size = _descriptor(raw, look.memory(base + at + 8, 8))
        who_has = " ".join(loaded.get(at, ()))
        if raw or who_has:
            used = text(f"in {who_has}", "here") if who_has and at else ""
            rows.append([f" {at:#04x}", f"{raw:#018x}", join(" ", [words, used])])
        at += size
    screen.columns(rows)


def _descriptor(raw: int, above: bytes) -> tuple[str, int]:
    if not raw:
        return "null", 8
    kind, dpl = raw >> 40 & 0xF, raw >> 45 & 3
    present = "" if raw >> 47 & 1 else ", not present"
    base = (raw >> 16 & 0xFF_FFFF) | (raw >> 56 & 0xFF) << 24
    if raw >> 44 & 1:
        if kind & 8:
            bits = "64-bit" if raw >> 53 & 1 else "32-bit" if raw >> 54 & 1 else "16-bit"
            return f"code {bits}, DPL {dpl}{', conforming' if kind & 4 else ''}{present}", 8
        return f"data{', writable' if kind & 2 else ''}, DPL {dpl}{present}", 8
    names = {2: "LDT", 9: "TSS, available", 0xB: "TSS, busy"}
    base |= int.from_bytes(above[:4], "little") << 32
    limit = (raw & 0xFFFF) | (raw >> 48 & 0xF) << 16
    return f"{names.get(kind, f'system type {kind:#x}')}, base {base:#x} limit {limit:#x}{present}", 16


# --- vmcs -----------------------------------------------------------------------------------------------
def vmcs_page(look: Look, screen: Screen, which: str) -> None:
    """Fields of the VMCS that are not 0.

    Args:
        which: a group (control exit guest host), or a part of a field's name; "": all.

    Raises:
        VpmuError: no hypervisor, or nothing is called so.
    """
    system = look.system
    if not system.has_host:
        raise VpmuError("info vmcs: the program has no hypervisor below it (try --vpmu passthrough)")
    vcpu = system.S.vcpus[0]
    asked = [
        (field, value, words)
        for field, value, words in vmcs_values(system.M, int(vcpu.vmcs))
        if not which or which.lower() == field.group or which.upper() in field.name
    ]
    if not asked:
        groups = " ".join(GROUPS)
        raise VpmuError(
            f"info vmcs: no field is called {shown(which)}; a part of its name, or {groups}"
        )
    zero = 0
    rows: list[list[Text | str]] = []
    for field, value, words in asked:
        if not value and (not which or which.lower() in GROUPS):
            zero += 1
            continue
        if field.name.endswith(("INTR_INFO", "INTR_INFO_FIELD", "VECTORING_INFO_FIELD")):
            words = intr_words(value)
        if field.name == "VM_EXIT_REASON":
            from vpmu_emu.tables.exits import exit_name

            words = exit_name(value & 0xFFFF)
        rows.append(
            [f" {field.encoding:#06x}", text(field.name, "name"), f"{value:#x}", text(words, "dim")]
        )
    cached = (
        " (a guest is running: what it has changed since is not there yet)"
        if look.processor().inside
        else ""
    )
    screen.banner("VMCS", f"at {int(vcpu.vmcs):#x}")
    screen.columns(rows)
    if zero:
        screen.line(f" {zero} fields are 0")
    if cached:
        screen.line(text(cached, "dim"))


# --- filter ---------------------------------------------------------------------------------------------
def filter_page(look: Look, screen: Screen) -> None:
    """The event filter and the MSR filter of the VM.

    Raises:
        VpmuError: no hypervisor.
    """
    system = look.system
    if not system.has_host:
        raise VpmuError("info filter: the program has no hypervisor below it (try --vpmu passthrough)")
    vm = system.S.vms[int(system.S.vcpus[0].vm)]
    names = system.model.events
    screen.banner("event filter", "KVM_SET_PMU_EVENT_FILTER")
    if not int(vm.filter_on):
        screen.line(" none: the guest may count every event")
    else:
        allow = int(vm.action) == KVM_PMU_EVENT_ALLOW
        screen.line(
            " ", text("allows" if allow else "denies", "title"), " what is listed, and nothing else"
        )
        fixed = int(vm.fixed_counter_bitmap)
        listed = " ".join(f"fixed{j}" for j in range(32) if fixed >> j & 1) or "none"
        screen.line(f" fixed counters {fixed:#x}: {listed}")
        n, m = int(vm.nr_includes), int(vm.nr_excludes)
        for k in range(n + m):
            entry = int(vm.events[k])
            select, match, mask = entry & 0xFF, entry >> 8 & 0xFF, entry >> 56
            known = event_by_code(match << 8 | select, names)
            masked = "" if mask == 0xFF else f" mask {mask:#04x}"
            kind = "excludes" if k >= n else "includes"
            name = f"  {known.name}" if known and mask == 0xFF else ""
            screen.line(f" {kind} select {select:#04x} umask {match:#04x}{masked}", text(name, "name"))
    for i, pmc in enumerate(
        system.S.vcpus[0].pmu.pmcs[: int(system.S.vcpus[0].pmu.nr_arch_gp_counters)]
    ):
        wanted, given = int(pmc.eventsel), int(pmc.eventsel_hw)
        if int(vm.vpmu) != VPMU_EMULATED and wanted and given != wanted:
            screen.line(
                text(f" pmc{i}: the guest wrote {wanted:#x}, the hardware has {given:#x}", "changed")
            )
    screen.banner("MSR filter", "KVM_X86_SET_MSR_FILTER")
    if not int(vm.msr_filter):
        screen.line(" none: KVM handles every MSR")
        return
    screen.line(" what is in no range is ", "allowed" if int(vm.msr_filter_allow) else "denied")
    for k in range(int(vm.msr_filter_n)):
        flags, count, first, _ = (
            int.from_bytes(system.M[at : at + 4].tobytes(), "little")
            for at in range(int(vm.msr_filter) + 16 * k, int(vm.msr_filter) + 16 * k + 16, 4)
        )
        what = " and ".join(word for bit, word in ((1, "reads"), (2, "writes")) if flags & bit)
        bitmap = int(vm.msr_filter) + 4096 + _bitmap_size() * k
        allowed = [n for n in range(count) if int(system.M[bitmap + (n >> 3)]) >> (n & 7) & 1]
        some = " ".join(msr_name(first + n) for n in allowed[:8]) + (" …" if len(allowed) > 8 else "")
        words = f"allowed: {some}" if allowed else "all denied"
        words = "all allowed" if len(allowed) == count else words
        last = f" to {msr_name(first + count - 1)}" if count > 1 else ""
        screen.line(f" {what} of {msr_name(first)}{last}: {words}")


def _bitmap_size() -> int:
    from vpmu_emu.tables.linux import constant

    return int(constant("KVM_MSR_FILTER_MAX_BITMAP_SIZE"))


def time_text(system: Any) -> str:
    """Where a run is: instructions, TSC, exits."""
    tsc = tsc_value(system.core, max(int(core.t) for core in system.cores))
    exits = sum(system.exits().values())
    return f"#{system.instructions:,}  tsc {tsc:,}" + (f"  exits {exits:,}" if system.has_host else "")
