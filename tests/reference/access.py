"""What becomes of one RDMSR, WRMSR or RDPMC, decided by hand-written tables; knows nothing of the emulator.

SDM volume 3B chapter 20 and volume 4 for silicon; for KVM arch/x86/kvm/pmu.c, vmx/pmu_intel.c, vmx/vmx.c,
x86.c of Linux 7.0 (its mediated vPMU too), and patches 17, 18, 31 to 37 of the first version of the
passthrough series.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PMC, EVTSEL, A_PMC, FIXED = 0xC1, 0x186, 0x4C1, 0x309
FIXED_CTRL, STATUS, CTRL, OVF, SET, INUSE = 0x38D, 0x38E, 0x38F, 0x390, 0x391, 0x392
CAPS, METRICS, K7, TSC, DEADLINE = 0x345, 0x329, 0xC001_0000, 0x10, 0x6E0
PASSED = (0xC000_0100, 0xC000_0101, 0xC000_0102, 0x174, 0x175, 0x176)  # bases and SYSENTER
ALL = (1 << 64) - 1
WIDTH = (1 << 48) - 1

# (version, general-purpose counters, fixed counters, PERF_CAPABILITIES, PERF_METRICS)
SILICON = {"spr": (5, 8, 4, 0xE4FF, True), "skx": (4, 4, 3, 0x2005, False)}


@dataclass(frozen=True)
class Question:
    """An access and the state that it meets; every counter is 0 and off, GLOBAL_CTRL is `ctrl`."""

    action: str
    index: int
    value: int
    mode: str
    cpu: str = "spr"
    cpl: int = 0
    pce: int = 0
    version: int = 2  # of the guest
    gp: int = 8
    fixed: int = 3
    fw: bool = True
    all_passthrough: bool = False
    ctrl: int = 0xFF
    deny: tuple[int, ...] | None = None  # event codes (UMASK, EVENT) that a filter denies
    allow: tuple[int, ...] | None = None
    fixed_bitmap: int = 0
    msr_denied: tuple[tuple[int, str], ...] = ()  # (MSR, action) that an MSR filter denies
    user_space: tuple[str, ...] = ()  # filter, unknown, inval: what the VMM is asked about


@dataclass(frozen=True)
class Answer:
    """What decides it, whether it is #GP, whether it leaves the guest, what can be read then (or None)."""

    decides: str
    fault: bool = False
    exits: bool = False
    value: int | None = None


def _within(index: int, base: int, count: int) -> bool:
    return base <= index < base + count


def _outcome(who: str, exits: bool, fault: bool = False, value: int | None = None) -> Answer:
    return Answer(who, fault, exits, None if fault else value)


def _extended(value: int) -> int:
    low = value & 0xFFFF_FFFF
    return (low | (0xFFFF_FFFF << 32 if low >> 31 else 0)) & WIDTH


def _silicon(q: Question, write: bool) -> tuple[bool, int | None]:
    """(#GP, value) as the processor does it."""
    _, gp, fixed, caps, metrics = SILICON[q.cpu]
    i, v = q.index, q.value
    gp_mask, fixed_mask = (1 << gp) - 1, ((1 << fixed) - 1) << 32
    if _within(i, PMC, gp):
        return False, _extended(v) if write else 0
    if _within(i, EVTSEL, gp):
        adaptive = 1 << 34 if caps >> 14 & 1 else 0
        return write and bool(v & ~(0xFFFF_FFFF | adaptive)), v if write else 0
    if _within(i, A_PMC, gp) or _within(i, FIXED, fixed):
        return write and bool(v & ~WIDTH), v if write else 0
    if i == FIXED_CTRL:
        allowed = sum(0xF << 4 * k for k in range(fixed))
        if caps >> 14 & 1:
            allowed |= sum(1 << 32 + 4 * k for k in range(fixed))
        return write and bool(v & ~allowed), v if write else 0
    if i == STATUS:
        return write, 0
    if i == CTRL:
        return write and bool(v & ~(gp_mask | fixed_mask | metrics << 48)), v if write else q.ctrl
    if i == OVF:
        allowed = gp_mask | fixed_mask | metrics << 48 | 7 << 58 | 1 << 61 | 3 << 62
        return write and bool(v & ~allowed), 0
    if i == SET:
        allowed = gp_mask | fixed_mask | metrics << 48 | 1 << 55 | 7 << 58 | 3 << 61
        return write and bool(v & ~allowed), 0
    if i == INUSE:
        return write, 0
    if i == CAPS:
        return write, caps
    if i == METRICS:
        return not metrics, None
    if i in (TSC, *PASSED):
        wrong = write and i in PASSED and i != 0x174 and (v >> 47) not in (0, 0x1FFFF)
        return wrong, None
    if i == DEADLINE:
        return False, 0
    return True, None


def _kvm(q: Question, write: bool) -> tuple[bool, int | None]:
    """(#GP, value) as KVM's handlers do it."""
    i, v = q.index, q.value
    gp = q.gp if q.version else 0
    fixed = q.fixed if q.version > 1 else 0
    gp_mask, fixed_mask = (1 << gp) - 1, ((1 << fixed) - 1) << 32
    if _within(i, PMC, gp):
        return False, _extended(v) if write else 0
    if _within(i, EVTSEL, gp):
        return write and bool(v & ~0xFFDF_FFFF), v if write else 0
    if _within(i, A_PMC, gp) and q.fw:
        return write and bool(v & ~WIDTH), v if write else 0
    if _within(i, FIXED, fixed):
        return False, v & WIDTH if write else 0
    if q.version > 1 and i in (FIXED_CTRL, STATUS, CTRL, OVF):
        allowed = {
            FIXED_CTRL: sum(0xB << 4 * k for k in range(fixed)),
            STATUS: -1,
            CTRL: gp_mask | fixed_mask,
            OVF: gp_mask | fixed_mask | 3 << 62,
        }[i]
        if i == STATUS:
            return write, 0
        read = q.ctrl if i == CTRL else 0
        return write and bool(v & ~allowed), 0 if i == OVF else v if write else read
    if i == CAPS and q.version:
        return write, 0x2000 if q.fw else 0
    if _within(i, PMC, 2) or _within(i, EVTSEL, 2) or _within(i, K7, 8):
        return False, 0  # absent, and dropped without a word
    if i in (TSC, *PASSED):
        return False, None
    if i == DEADLINE:
        return False, 0
    return True, None


def _has_all(q: Question) -> bool:
    """kvm_need_any_pmc_intercept(), the other way round: every counter of the host is the guest's."""
    _, gp, fixed, _, _ = SILICON[q.cpu]
    return (q.gp, q.fixed if q.version > 1 else 0) == (gp, fixed)


def _passes(q: Question, write: bool) -> bool:
    """Whether the MSR bitmap lets it through."""
    if q.index in PASSED or (q.index == TSC and not write):
        return True
    if q.mode not in ("passthrough", "mediated") or not q.version:
        return False
    i = q.index
    if i in (STATUS, CTRL, OVF) and q.mode == "mediated" and not _has_all(q):
        return False
    if _within(i, PMC, q.gp) or (_within(i, A_PMC, q.gp) and q.fw):
        return True
    if q.version > 1 and (_within(i, FIXED, q.fixed) or i in (STATUS, CTRL, OVF)):
        return True
    return q.all_passthrough and (_within(i, EVTSEL, q.gp) or (i == FIXED_CTRL and q.version > 1))


def _denied(q: Question, event: int) -> bool:
    if q.deny is not None:
        return event & 0xFFFF in q.deny
    return q.allow is not None and event & 0xFFFF not in q.allow


def _filtered(q: Question) -> bool:
    """Whether the event filter stops what this write to a selector asks for."""
    if q.deny is None and q.allow is None:
        return False
    if _within(q.index, EVTSEL, q.gp) and q.value:
        k = q.index - EVTSEL
        # reprogram_counter() asks the filter about counters that are on, the mediated vPMU about those
        # that their selector has on, the passthrough vPMU always.
        on = q.value >> 22 & 1 and (q.version < 2 or q.ctrl >> k & 1)
        if q.mode == "mediated":
            on = q.value >> 22 & 1  # pmc_is_locally_enabled()
        return bool(on or q.mode == "passthrough") and _denied(q, q.value)
    if q.index == FIXED_CTRL:
        for k in range(q.fixed):
            asked = q.value >> 4 * k & 0xF
            on = asked & 3 and (q.ctrl >> 32 + k & 1 or q.mode == "mediated")
            listed = q.fixed_bitmap >> k & 1
            denied = listed if q.deny is not None else not listed
            if denied and asked and (on or q.mode == "passthrough"):
                return True
    return False


def _rdpmc(q: Question) -> Answer:
    if q.cpl and not q.pce:
        return Answer("privilege", True)
    kind, index = q.index >> 16, q.index & 0xFFFF
    passes = q.mode == "passthrough" or (q.mode == "mediated" and _has_all(q))
    exits = q.mode != "bare" and not (passes and q.version)
    if exits:
        gp, fixed = (q.gp, q.fixed if q.version > 1 else 0) if q.version else (0, 0)
        if q.version and kind == 1 and index < 3:
            return Answer("KVM", exits=True)  # VMware's pseudo counters
    else:
        _, gp, fixed, _, metrics = SILICON[q.cpu]
        if kind == 0x2000 and index == 0 and metrics:
            return Answer("hardware", value=0)
    there = (kind == 0 and index < gp) or (kind == 0x4000 and index < fixed)
    return _outcome("KVM" if exits else "hardware", exits, not there, 0)


def answer(q: Question) -> Answer:
    """The decision."""
    if q.action == "rdpmc":
        return _rdpmc(q)
    if q.cpl:
        return Answer("privilege", True)
    write = q.action == "wrmsr"
    # kvm_msr_allowed() comes first, and whoever denies an access has it exit.
    if q.mode != "bare" and (q.index, q.action) in q.msr_denied:
        return Answer("VMM" if "filter" in q.user_space else "MSR filter", True, True)
    if q.mode == "bare" or _passes(q, write):
        fault, value = _silicon(q, write)
        return _outcome("hardware", False, fault, None if (q.index, "rdmsr") in q.msr_denied else value)
    fault, value = _kvm(q, write)
    # kvm_msr_user_space(): the VMM is asked about what would be #GP; ours refuses.
    if fault and ("unknown" if value is None else "inval") in q.user_space:
        return Answer("VMM", True, True)
    if (q.index, "rdmsr") in q.msr_denied:
        value = None
    if not fault and write and q.mode != "none" and _filtered(q):
        return Answer("event filter", exits=True, value=value)
    return _outcome("KVM", True, fault, value)


def registers() -> Sequence[int]:
    """Every register that the tables know, and some that nobody knows."""
    found = [TSC, DEADLINE, CAPS, METRICS, STATUS, CTRL, OVF, SET, INUSE, FIXED_CTRL, *PASSED]
    for base, count in ((PMC, 8), (EVTSEL, 8), (A_PMC, 8), (FIXED, 4), (K7, 8)):
        found += range(base, base + count)
    return [*found, 0x10A, 0x9F, 0x2000, 0xC000_2000, 0xFFFF_FFFF, 0x38B]
