"""What becomes of one RDMSR, WRMSR or RDPMC: step by step, from the tables and the real bitmap."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import attrs

from vpmu_emu.errors import ConfigError
from vpmu_emu.numerals import shown, whole
from vpmu_emu.tables.events import LISTS
from vpmu_emu.tables.msrs import by_name, decode_value, msr_name, row_of, value_words

ACTIONS = ("rdmsr", "wrmsr", "rdpmc")


@attrs.frozen
class Step:
    """One decision: its subject and what is decided."""

    what: str
    verdict: str


def parse_number(text: str, key: str) -> int:
    """An integer as written in assembler, `0x` and `_` allowed.

    Raises:
        ConfigError: anything else, or a value that 64 bits cannot hold.
    """
    value = whole(text)
    if value is None and text.strip().isdigit():
        raise ConfigError(key, f"{shown(text)} does not fit 64 bits")
    if value is None:
        raise ConfigError(key, f"{shown(text)} is not a number", "42, 0x2a, 0b101010; at most 64 bits")
    if value < -(1 << 63):
        raise ConfigError(key, f"{shown(text)} does not fit 64 bits")
    return value & (1 << 64) - 1


def parse_index(text: str, key: str) -> int:
    """What ECX can hold, as a number.

    Raises:
        ConfigError: something else.
    """
    value = whole(text)
    if value is None or not 0 <= value < 1 << 32:
        raise ConfigError(key, f"{shown(text)} is not what ECX can hold", "0 to 0xffffffff")
    return value


def bitmap_place(index: int, write: bool) -> tuple[int, int] | None:
    """(byte, bit) of an MSR in the 4 KiB MSR bitmap (SDM 3C 25.6.9), None if it has no bit."""
    if index < 0x2000:
        base = 0
    elif 0xC000_0000 <= index < 0xC000_2000:
        base = 1024
    else:
        return None
    low = index & 0x1FFF
    return base + (2048 if write else 0) + low // 8, low % 8


def explain(
    action: str,
    what: str,
    value: int | None,
    bitmap: Callable[[], bytes] | None,
    rules: Callable[[str], Any],
    events: str = LISTS[0],
) -> list[Step]:
    """The decision path of one access.

    Args:
        action: one of `ACTIONS`.
        what: an MSR's name or number; for rdpmc the value of ECX.
        value: what is written, or what a read would find, or None.
        bitmap: gives the 4 KiB MSR bitmap of the guest; None where there is no hypervisor.
        rules: `rules("hw")` and `rules("kvm")` as in `tables.msrs.rules` for the CPU at hand.
        events: the CPU's list of events.

    Raises:
        UnknownNameError: no such MSR.
    """
    if action == "rdpmc":
        if value is not None:
            raise ConfigError("VALUE", "RDPMC takes none: its counter is in ECX")
        return list(_rdpmc(parse_index(what, "ECX"), bitmap is not None))
    index = parse_index(what, "MSR") if what.strip()[:1] in "-+0123456789" else by_name(what)
    return list(_msr(action, index, value, bitmap, rules, events))


def _msr(
    action: str,
    index: int,
    value: int | None,
    bitmap: Callable[[], bytes] | None,
    rules: Callable[[str], Any],
    events: str,
) -> Iterable[Step]:
    write = action == "wrmsr"
    found = row_of(index)
    yield Step("MSR", f"{index:#x} {msr_name(index)}" + (f": {found[0].doc}" if found else ""))
    if found and (found[0].aliases or found[0].kernel):
        names = [found[0].instance_name(found[1], n) for n in (*found[0].aliases, *found[0].kernel)]
        yield Step("also called", ", ".join(names))
    if value is not None:
        yield Step("value", f"{value:#x} = {value_words(index, value, events)}")
        for name, bits, words in decode_value(index, value, events):
            if bits:
                yield Step(f"  {name}", f"{bits:#x}" + (f" {words}" if words else ""))
    yield Step("privilege", "CPL must be 0, else #GP before anything else")
    if bitmap is None:
        yield from _side("hw", "hardware", found, value, write, rules)
        return
    place = bitmap_place(index, write)
    if place is None:
        yield Step("MSR bitmap", "outside both ranges: the access always exits")
        exits = True
    else:
        byte, bit = place
        exits = bool(bitmap()[byte] >> bit & 1)
        verdict = "1: the guest exits" if exits else "0: no exit"
        yield Step("MSR bitmap", f"byte {byte:#x}, bit {bit} is {verdict}")
    if exits:
        yield Step("VM-exit", f"reason {'MSR_WRITE (32)' if write else 'MSR_READ (31)'}")
        handler = "kvm_emulate_wrmsr" if write else "kvm_emulate_rdmsr"
        yield Step("handler", handler)
        yield from _side("kvm", "KVM", found, value, write, rules)
    else:
        yield from _side("hw", "hardware", found, value, write, rules)


def _side(
    side: str,
    who: str,
    found: tuple[Any, int] | None,
    value: int | None,
    write: bool,
    rules: Callable[[str], Any],
) -> Iterable[Step]:
    if found is None:
        yield Step(who, "does not know this MSR: #GP")
        return
    row, instance = found
    shape = rules(side)
    rule = row.hw if side == "hw" else row.kvm
    if instance >= shape.exists_count[row.number]:
        if instance < rule.drop_absent:
            yield Step(who, "absent with this CPUID, yet no #GP: writes do nothing, reads give 0")
        else:
            yield Step(who, "absent with this CPUID: #GP")
        return
    access = ("rw", "ro", "wo", "drop")[shape.access[row.number]]
    if access == "drop":
        yield Step(who, "writes do nothing, reads give 0")
        return
    if (access == "ro" and write) or (access == "wo" and not write):
        yield Step(who, f"{'read' if access == 'ro' else 'write'}-only: #GP")
        return
    reserved = shape.reserved[row.number]
    if write and value is not None and value & reserved:
        yield Step(who, f"reserved bits {value & reserved:#x} are set: #GP, registers unchanged")
        return
    yield Step(who, rule.effect or ("takes the value" if write else "gives the value"))


def _rdpmc(ecx: int, guest: bool) -> Iterable[Step]:
    kind = ecx >> 16 & 0xFFFF
    names = {0: "general-purpose counter", 0x4000: "fixed counter", 0x2000: "PERF_METRICS"}
    what = names.get(kind, "no counter type")
    yield Step("ECX", f"{ecx:#x}: {what} {ecx & 0xFFFF}")
    yield Step("privilege", "CPL above 0 with CR4.PCE clear: #GP, and no exit")
    if guest:
        yield Step("RDPMC exiting", "if the control is set: exit RDPMC (15), then kvm_emulate_rdpmc")
    yield Step("index", "a counter that does not exist: #GP" if kind in names else "#GP")
    yield Step("effect", "EDX:EAX = the counter, zero-extended")
