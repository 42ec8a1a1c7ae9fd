"""An MSR filter as TOML: KVM_X86_SET_MSR_FILTER and KVM_CAP_X86_USER_SPACE_MSR; errors name key and place.

    default = "allow"                       # or "deny": MSRs that no range has
    user_space = ["filter"]                 # and "unknown", "inval": before which #GP the VMM is asked
    ranges = [
        { first = "IA32_PMC0", count = 8, access = ["write"], allow = ["IA32_PMC1"] },
        { first = 0x38f },                  # one MSR, reads and writes, denied
    ]

`allow` is a list of the range's MSRs, `true` for all of them or `false` for none. The first range that has
MSR and access decides. x2APIC registers are never filtered.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from vpmu_emu.errors import ConfigError
from vpmu_emu.numerals import shown
from vpmu_emu.setup.keys import number, only, parsed, text_of, words
from vpmu_emu.tables.linux import STRUCTS, constant
from vpmu_emu.tables.msrs import by_name

ACCESS = {"read": constant("KVM_MSR_FILTER_READ"), "write": constant("KVM_MSR_FILTER_WRITE")}
REASONS = {name: constant(f"KVM_MSR_EXIT_REASON_{name.upper()}") for name in ("inval", "unknown", "filter")}
DEFAULTS = {name: constant(f"KVM_MSR_FILTER_DEFAULT_{name.upper()}") for name in ("allow", "deny")}
MOST_RANGES = constant("KVM_MSR_FILTER_MAX_RANGES")
MOST_MSRS = constant("KVM_MSR_FILTER_MAX_BITMAP_SIZE") * 8
KEYS = ("default", "user_space", "ranges")
RANGE_KEYS = ("first", "count", "access", "allow")
WORD = 8  # bytes: KVM copies whole ones of a bitmap


@attrs.frozen
class MsrRange:
    """struct kvm_msr_filter_range: accesses (`flags`), MSRs from `base` on, a bit each: 1 if allowed."""

    flags: int
    base: int
    nmsrs: int
    bitmap: bytes


@attrs.frozen
class MsrFilter:
    """What the VMM gives to KVM.

    Attributes:
        flags: KVM_MSR_FILTER_DEFAULT_*.
        ranges: in the order in which they are looked at.
        user_space: KVM_MSR_EXIT_REASON_*, for KVM_CAP_X86_USER_SPACE_MSR.
    """

    flags: int
    ranges: tuple[MsrRange, ...] = ()
    user_space: int = 0

    def files(self) -> dict[str, bytes]:
        """The structures of both ioctls as files for the VMM; bitmaps are at offsets of theirs."""
        row, each = STRUCTS["kvm_msr_filter"], STRUCTS["kvm_msr_filter_range"]
        ranges, bitmaps = b"", b""
        for one in self.ranges:
            ranges += each.new(
                flags=one.flags, nmsrs=one.nmsrs, base=one.base, bitmap=row.size + len(bitmaps)
            ).tobytes()
            bitmaps += one.bitmap
        head = row.new(flags=self.flags).tobytes()
        at = row.offset("ranges")
        files = {"/msr_filter": head[:at] + ranges + head[at + len(ranges) :] + bitmaps}
        if self.user_space:
            cap = STRUCTS["kvm_enable_cap"].new(cap=constant("KVM_CAP_X86_USER_SPACE_MSR"))
            cap["args"][0] = self.user_space
            files["/user_space_msr"] = cap.tobytes()
        return files


def _msr(item: Any, place: str) -> int:
    if isinstance(item, str):
        return by_name(item)
    if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < 1 << 32:
        raise ConfigError(place, f"{shown(item)} is not an MSR", "a name, a number up to 0xffffffff")
    return item


def _range(item: Any, place: str) -> MsrRange:
    if not isinstance(item, dict):
        raise ConfigError(place, f"{shown(item)} is not a range", "{ first = MSR, … }")
    only(item, RANGE_KEYS, place)
    if "first" not in item:
        raise ConfigError(f"{place}.first", "is missing", "a name, a number up to 0xffffffff")
    base = _msr(item["first"], f"{place}.first")
    nmsrs = number(item, "count", place, 1, min(MOST_MSRS, (1 << 32) - base), 1)
    access = words(item, "access", place, tuple(ACCESS), tuple(ACCESS))
    if not access:
        raise ConfigError(f"{place}.access", "is empty", " ".join(ACCESS))
    allow = item.get("allow", False)
    if isinstance(allow, bool):
        bits = (1 << nmsrs) - 1 if allow else 0
    elif isinstance(allow, list):
        bits = 0
        for k, one in enumerate(allow):
            index = _msr(one, f"{place}.allow[{k}]")
            if not base <= index < base + nmsrs:
                raise ConfigError(
                    f"{place}.allow[{k}]", f"{shown(one)} is not in the range",
                    f"{base:#x} to {base + nmsrs - 1:#x}",
                )  # fmt: skip
            bits |= 1 << index - base
    else:
        raise ConfigError(f"{place}.allow", f"{shown(allow)} is not allowed", "true false […]")
    size = -(-nmsrs // (8 * WORD)) * WORD
    return MsrRange(sum({ACCESS[word] for word in access}), base, nmsrs, bits.to_bytes(size, "little"))


def parse_msr_filter(text: str, name: str = "msr-filter") -> MsrFilter:
    """A filter from TOML text; `name` stands before every key in messages.

    Raises:
        ConfigError: broken TOML, an unknown key, a wrong value; UnknownNameError: no such MSR.
    """
    table = parsed(text, name)
    only(table, KEYS, name)
    default = table.get("default", "allow")
    if not isinstance(default, str) or default not in DEFAULTS:
        raise ConfigError(f"{name}.default", f"{shown(default)} is not allowed", " ".join(DEFAULTS))
    asked = words(table, "user_space", name, tuple(REASONS), ())
    ranges = table.get("ranges", [])
    if not isinstance(ranges, list):
        raise ConfigError(f"{name}.ranges", f"{shown(ranges)} is not a list", "[…]")
    if len(ranges) > MOST_RANGES:
        raise ConfigError(f"{name}.ranges", f"{len(ranges)} ranges", f"at most {MOST_RANGES}")
    if not ranges and DEFAULTS[default]:
        raise ConfigError(f"{name}.ranges", "are missing: KVM denies nothing by default alone (EINVAL)")
    found = tuple(_range(item, f"{name}.ranges[{k}]") for k, item in enumerate(ranges))
    return MsrFilter(DEFAULTS[default], found, sum({REASONS[word] for word in asked}))


def load_msr_filter(path: str | Path) -> MsrFilter:
    """A filter from a TOML file.

    Raises:
        ConfigError: the file cannot be read, or as `parse_msr_filter`.
    """
    return parse_msr_filter(text_of(path, "msr-filter"), str(path))
