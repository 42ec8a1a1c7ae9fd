"""`isa/msrs.toml` as frozen rows: every MSR, what silicon and KVM do with it, what its bits say."""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, NamedTuple

import attrs

from vpmu_emu.data import isa_dir
from vpmu_emu.tables.events import LISTS, NOT_COUNTED, event_by_code
from vpmu_emu.tables.expressions import MASK64, evaluate
from vpmu_emu.tables.names import Names

ACCESS = ("rw", "ro", "wo", "drop")
"""What an access code of `rules` means: its index here."""

ACCESS_RW, ACCESS_RO, ACCESS_WO, ACCESS_DROP = range(len(ACCESS))

CANONICAL = ("", "fault", "made")
"""What becomes of a value that is no canonical address; "": there is no such rule."""

Side = Literal["hw", "kvm"]


@attrs.frozen(kw_only=True)
class Shape:
    """What a CPU has, as its CPUID and IA32_PERF_CAPABILITIES say it: what the formulas are over.

    Attributes:
        version: architectural performance monitoring version, 0 none.
        gp, fixed: number of general-purpose and fixed counters.
        gp_width, fixed_width: their bits.
        perf_capabilities: the MSR's value.
        maxphyaddr: bits of a physical address.
        The others: the CPUID feature of that name.
    """

    version: int = 0
    gp: int = 0
    gp_width: int = 48
    fixed: int = 0
    fixed_width: int = 48
    perf_capabilities: int = 0
    pdcm: bool = False
    x2apic: bool = True
    tsc_deadline: bool = True
    ds: bool = False
    rtm: bool = False
    ibpb: bool = True
    rdtscp: bool = True
    intel_pt: bool = False
    arch_lbr: bool = False
    metrics_level2: bool = False
    anythread_deprecated: bool = True
    maxphyaddr: int = 46

    def names(self) -> dict[str, int]:
        """The names that a formula may use, with their values for this shape."""
        values = {field.name: int(getattr(self, field.name)) for field in attrs.fields(Shape)}
        caps = self.perf_capabilities
        values.update(
            gp_mask=(1 << self.gp) - 1,
            fixed_mask=(1 << self.fixed) - 1,
            fixed_ctrl_mask=sum(0xB << 4 * i for i in range(self.fixed)),
            fixed_any_mask=sum(0x4 << 4 * i for i in range(self.fixed)),
            fixed_adaptive_mask=sum(1 << 32 + 4 * i for i in range(self.fixed)),
            lbr_legacy=int(caps & 0x3F == 5),
            pebs_format=caps >> 8 & 0xF,
            freeze_smm=caps >> 12 & 1,
            fw_writes=caps >> 13 & 1,
            pebs_baseline=caps >> 14 & 1,
            metrics=int(caps >> 15 & 1 and self.fixed > 3 and self.version > 1),
        )
        return values


@attrs.frozen
class Field:
    """Bits `high` to `low` of an MSR; `each` bit is a flag of its own, or `values` name 0, 1, …

    `kernel` is the kernel's name of its mask, `kernel_values` those of the values in their place.
    """

    name: str
    high: int
    low: int
    each: bool = False
    values: tuple[str, ...] = ()
    kernel: str = ""
    kernel_values: tuple[str, ...] = ()

    @property
    def mask(self) -> int:
        """The bits it covers."""
        return (1 << self.high + 1) - (1 << self.low)


@attrs.frozen(kw_only=True)
class Rule:
    """What one side (silicon or KVM) does with an MSR; the formulas are texts for `evaluate`."""

    exists: str = "true"
    reserved: str = "0"
    access: str = attrs.field(default="rw", validator=attrs.validators.in_(ACCESS))
    reset: str = "0"
    effect: str = ""
    drop_absent: int = 0
    canonical: str = attrs.field(default="", validator=attrs.validators.in_(CANONICAL))


@attrs.frozen(kw_only=True)
class Lives:
    """Where the value of a register is; "": nowhere, or it is more than a field.

    Attributes:
        core: field of the core's record, with `[n]` for one of a family.
        vcpu: field of the vCPU's row, of a guest whose context is out of the hardware.
        vmcs: field of the VMCS.
    """

    core: str = ""
    vcpu: str = ""
    vmcs: str = ""


@attrs.frozen(kw_only=True)
class Passed:
    """What a guest does in hardware, without an exit; vpmu_emu/tables/passed.py evaluates it.

    Attributes:
        rules: vPMU, or "every", to the formulas for reads and for writes.
        why: for the docs, and `by`, the functions of the kernel that decide.
    """

    rules: Mapping[str, tuple[str, str]] = attrs.field(factory=dict)
    why: str = ""
    by: str = ""


@attrs.frozen(kw_only=True)
class MsrRow:
    """A family of `count` registers at `index`, `index + stride`, …

    Attributes:
        number: its place in `MSRS`.
        slot: of instance 0 in an array with one element per register; instance n has slot + n.
        name, aliases, kernel: names of the SDM and of the Linux sources, without instance number.
        masks: names of several fields together, with their bits.
        ignored: mask of bits that may be written and mean nothing.
        lives: where its value is.
        passed: which accesses of a guest do not exit.
        hw, kvm: the rules of silicon and of KVM's handlers.
    """

    number: int
    slot: int
    name: str
    aliases: tuple[str, ...]
    kernel: tuple[str, ...]
    index: int
    count: int
    stride: int
    doc: str
    sdm: str
    fields: tuple[Field, ...]
    masks: Mapping[str, int]
    ignored: int
    lives: Lives
    passed: Passed
    hw: Rule
    kvm: Rule

    def instance_name(self, n: int, family: str = "") -> str:
        """The name of instance `n`, in the spelling `family` (default: the SDM's)."""
        family = family or self.name
        if self.count == 1:
            return family
        return family.format(n) if "{}" in family else f"{family}{n}"

    def rule(self, side: Side) -> Rule:
        """What `side` does with it."""
        return self.hw if side == "hw" else self.kvm


class Rules(NamedTuple):
    """One list element per row of `MSRS`, for one side and shape."""

    exists_count: list[int]
    """How many instances exist, from instance 0."""
    reserved: list[int]
    """Writing any of these bits raises #GP."""
    access: list[int]
    """Index into `ACCESS`."""
    reset: list[int]
    """Value after RESET."""


def _bits(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?::(\d+))?", text)
    if match is None:
        raise ValueError(f"bits {text!r}: expected high:low or a number")
    high = int(match[1])
    return high, int(match[2] or high)


def _fields(items: list[dict[str, Any]]) -> tuple[Field, ...]:
    fields = []
    for item in items:
        high, low = _bits(item.pop("bits"))
        values, kernel_values = (tuple(item.pop(key, ())) for key in ("values", "kernel_values"))
        fields.append(Field(high=high, low=low, values=values, kernel_values=kernel_values, **item))
    return tuple(fields)


def _passed(passed: dict[str, Any]) -> Passed:
    words = {key: passed.pop(key) for key in ("why", "by") if key in passed}
    rules = {}
    for vpmu, rule in passed.items():
        both = {"read": rule, "write": rule} if isinstance(rule, str) else rule
        rules[vpmu] = (both.get("read", "false"), both.get("write", "false"))
    return Passed(rules=rules, **words)


def _row(number: int, slot: int, row: dict[str, Any]) -> MsrRow:
    hw = row.pop("hw")
    kvm = {k: v for k, v in hw.items() if k != "effect"} | row.pop("kvm", {})
    fields = _fields(row.pop("fields"))
    bits = {field.name: field.mask for field in fields}
    masks = {mask: sum(bits[name] for name in names) for mask, names in row.pop("masks", {}).items()}
    ignored = 0
    for text in row.pop("ignored", ()):
        high, low = _bits(text)
        ignored |= (1 << high + 1) - (1 << low)
    return MsrRow(
        number=number,
        slot=slot,
        aliases=tuple(row.pop("aliases", ())),
        kernel=tuple(row.pop("kernel", ())),
        count=row.pop("count", 1),
        stride=row.pop("stride", 1),
        fields=fields,
        masks=masks,
        ignored=ignored,
        lives=Lives(**row.pop("lives", {})),
        passed=_passed(row.pop("passed", {})),
        hw=Rule(**hw),
        kvm=Rule(**kvm),
        **row,
    )


_TABLE = tomllib.loads((isa_dir() / "msrs.toml").read_text())


def _load() -> tuple[MsrRow, ...]:
    rows: list[MsrRow] = []
    slot = 0
    for row in _TABLE["msr"]:
        rows.append(_row(len(rows), slot, row))
        slot += rows[-1].count
    return tuple(rows)


MSRS: tuple[MsrRow, ...] = _load()
"""Every family, in the order of the file."""

ROW: dict[str, int] = {row.name: row.number for row in MSRS}
"""The place of each family in `MSRS`, by name."""

RDPMC_FIELDS: tuple[Field, ...] = _fields(_TABLE["rdpmc"]["fields"])
"""What ECX says to RDPMC."""

RDPMC_PASSED: Passed = _passed(_TABLE["rdpmc"]["passed"])
"""Which guests do RDPMC in hardware."""

SLOTS: int = MSRS[-1].slot + MSRS[-1].count
"""Number of registers: the length of an array with one element per register."""

DROPPED_WHEN_ABSENT: tuple[int, ...] = tuple(
    row.index + n * row.stride for row in MSRS for n in range(row.kvm.drop_absent)
)
"""Registers whose absence KVM hides: no #GP, writes do nothing, reads give 0.

As kvm_set_msr_common().
"""

_SORTED = sorted(MSRS, key=lambda row: row.index)
_STARTS = [row.index for row in _SORTED]


def _all_names() -> list[tuple[str, int]]:
    return [
        (row.instance_name(n, family), row.index + n * row.stride)
        for row in MSRS
        for family in (row.name, *row.aliases, *row.kernel)
        for n in range(row.count)
    ]


NAMES = Names("MSR", _all_names())
"""Every name of every register, with its index."""


def row_of(index: int) -> tuple[MsrRow, int] | None:
    """The family and instance number of MSR `index`, or None if the table has no such MSR."""
    at = bisect_right(_STARTS, index) - 1
    if at < 0:
        return None
    row = _SORTED[at]
    n, rest = divmod(index - row.index, row.stride)
    return (row, n) if n < row.count and rest == 0 else None


def by_name(name: str) -> int:
    """The index of the MSR with this name, the SDM's or the kernel's; case does not matter.

    Raises:
        UnknownNameError: no such MSR; the message names the nearest.
    """
    return NAMES[name]


def msr_name(index: int) -> str:
    """The SDM's name of MSR `index`; "MSR_0x…" if the table has no such MSR."""
    found = row_of(index)
    return found[0].instance_name(found[1]) if found else f"MSR_{index:#x}"


def slot_of(index: int) -> int | None:
    """The place of MSR `index` in an array with one element per register, or None."""
    found = row_of(index)
    return found[0].slot + found[1] if found else None


def decode_value(index: int, value: int, events: str = LISTS[0]) -> list[tuple[str, int, str]]:
    """What `value` says in MSR `index`: (field, its value, words), low bits first.

    Bits that no field covers come last as the field "reserved". For a selector the words of the
    field "event" name the event of EVENT and UMASK in event list `events`.
    """
    value &= MASK64
    found = row_of(index)
    if found is None:
        return [("value", value, "")]
    row = found[0]
    parts: list[tuple[str, int, str]] = []
    covered = row.ignored
    for field in sorted(row.fields, key=lambda f: f.low):
        covered |= field.mask
        bits = (value & field.mask) >> field.low
        parts.append((field.name, bits, _words(row, field, bits, value, events)))
    if value & ~covered:
        parts.append(("reserved", value & ~covered, "no field has these bits"))
    return parts


def _words(row: MsrRow, field: Field, bits: int, value: int, events: str) -> str:
    if row.name == "IA32_PERFEVTSEL" and field.name == "event":
        event = event_by_code(value, events)
        return event.name if event else NOT_COUNTED if value & 0xFFFF else ""
    if field.each:
        width = range(field.high - field.low + 1)
        return " ".join(f"{field.name}{i}" for i in width if bits >> i & 1)
    if field.values:
        return field.values[bits] if bits < len(field.values) else ""
    return ""


def value_words(index: int, value: int, events: str = LISTS[0]) -> str:
    """`value` of MSR `index` in one line, such as "INST_RETIRED.ANY_P usr os en cmask=1".

    `events` is the list that names the event of a selector.
    """
    found = row_of(index)
    if found is None:
        return f"{value:#x}"
    row = found[0]
    wide = {field.name: field.high > field.low for field in row.fields}
    parts = decode_value(index, value, events)
    selector = row.name == "IA32_PERFEVTSEL"
    known = selector and event_by_code(value, events) is not None
    out: list[str] = []
    for name, bits, words in parts:
        if known and name == "umask":
            continue
        if words and name != "reserved" and not (selector and not known and name == "event"):
            out.append(words)
        elif name != "reserved" and not wide[name]:
            out += [name] if bits else []
        elif bits or (selector and name == "event"):
            out.append(f"{name}={bits:#x}")
    asks = selector and not known and value & 0xFFFF
    return (" ".join(out) or "0") + (f", {NOT_COUNTED}" if asks else "")


def reset_of(name: str, side: Side = "hw") -> int:
    """Value after RESET of a register whose formula names no feature."""
    return evaluate(MSRS[ROW[name]].rule(side).reset, Shape().names())


@cache
def rules(side: Side, shape: Shape, unchecked: tuple[str, ...] = ()) -> Rules:
    """What `side` does with every row of `MSRS` on a CPU of this shape; worked out once, so read only.

    `unchecked` names rows whose reserved bits a deliberate bug accepts.
    """
    names = shape.names()
    out = Rules([], [], [], [])
    for row in MSRS:
        rule = row.rule(side)
        count = row.count if rule.exists == "true" else evaluate(rule.exists, names)
        out.exists_count.append(min(count, row.count))
        out.reserved.append(0 if row.name in unchecked else evaluate(rule.reserved, names))
        out.access.append(ACCESS.index(rule.access))
        out.reset.append(evaluate(rule.reset, names))
    return out
