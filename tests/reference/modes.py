"""Which instructions of a guest exit in each mode: RFC v1 and Linux 7.0, for a guest of version 2."""

from __future__ import annotations

from collections.abc import Callable

ALWAYS = {"cpuid", "hlt", "in", "out", "vmcall", "wbinvd"}
GP, FIXED = 8, 3


def _passes_in_passthrough(msr: int) -> bool:
    """intel_passthrough_pmu_msrs(): counters and the global registers, never a selector."""
    return (
        0xC1 <= msr < 0xC1 + GP
        or 0x4C1 <= msr < 0x4C1 + GP
        or 0x309 <= msr < 0x309 + FIXED
        or msr in (0x38E, 0x38F, 0x390)
    )


def _pmu_or_other(msr: int) -> bool:
    """FS, GS and KERNEL_GS base have no PMU to do with and never exit."""
    return msr not in (0xC0000100, 0xC0000101, 0xC0000102)


def emulated(name: str, ecx: int) -> bool:
    return name in ALWAYS or name == "rdpmc" or (name in ("rdmsr", "wrmsr") and _pmu_or_other(ecx))


def passthrough(name: str, ecx: int) -> bool:
    if name in ("rdmsr", "wrmsr"):
        return _pmu_or_other(ecx) and not _passes_in_passthrough(ecx)
    return name in ALWAYS


def all_passthrough(name: str, ecx: int) -> bool:
    """`--all-passthrough`: the selectors pass as well."""
    if name in ("rdmsr", "wrmsr") and (0x186 <= ecx < 0x186 + GP or ecx == 0x38D):
        return False
    return passthrough(name, ecx)


def mediated(name: str, ecx: int) -> bool:
    """A guest of `spr` lacks its fourth fixed counter: RDPMC and the global registers exit."""
    if name in ("rdmsr", "wrmsr"):
        return _pmu_or_other(ecx) and not (_passes_in_passthrough(ecx) and ecx not in (0x38E, 0x38F, 0x390))
    return name in ALWAYS or name == "rdpmc"


EXITS: dict[str, Callable[[str, int], bool]] = {
    "emulated": emulated,
    "passthrough": passthrough,
    "mediated": mediated,
}
