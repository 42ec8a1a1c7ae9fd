"""Words for what the trace has as numbers, for all who read it."""

from __future__ import annotations

import errno

from vpmu_emu.linux.trace_kinds import REPROGRAM_NAMES
from vpmu_emu.machine import msr_index, ring
from vpmu_emu.machine.ring import BY_NO_BITMAP, BY_RANGE, BY_RDPMC_EXITING
from vpmu_emu.tables.linux import constant
from vpmu_emu.tables.msrs import row_of

EXCEPTION_NAMES = {
    0: "#DE", 1: "#DB", 2: "NMI", 3: "#BP", 4: "#OF", 5: "#BR", 6: "#UD", 7: "#NM", 8: "#DF", 10: "#TS",
    11: "#NP", 12: "#SS", 13: "#GP", 14: "#PF", 16: "#MF", 17: "#AC", 18: "#MC", 19: "#XM", 20: "#VE",
    21: "#CP",
}  # fmt: skip
RDPMC_FIXED = int(msr_index.INTEL_PMC_FIXED_RDPMC_BASE) >> 16
_RDPMC_TYPES = {
    0: "general-purpose counter",
    RDPMC_FIXED: "fixed counter",
    int(msr_index.INTEL_PMC_FIXED_RDPMC_METRICS) >> 16: "PERF_METRICS",
}
FASTPATHS = ("", "REENTER_GUEST", "EXIT_HANDLED")
# KVM_MSR_EXIT_REASON_*
MSR_REASONS = {constant(f"KVM_MSR_EXIT_REASON_{name}"): name for name in ("INVAL", "UNKNOWN", "FILTER")}
_RULES = {
    BY_RANGE: "outside of the MSR bitmap",
    BY_NO_BITMAP: "no MSR bitmap",
    BY_RDPMC_EXITING: "RDPMC exiting",
}


def bitmap_words(place: int) -> str:
    """What decides whether an access exits, as TR_INTERCEPT has it: `byte 0x871 bit 7`, or a rule."""
    return _RULES[place] if place >= BY_RANGE else f"byte {place >> 3:#x} bit {place & 7}"


def counter_of_bit(index: int) -> str:
    """A counter's bit in GLOBAL_STATUS as a name: pmc0, fixed1."""
    return f"pmc{index}" if index < 32 else f"fixed{index - 32}"


def reprogram_words(how: int) -> str:
    """What became of reprogram_counter(), with the error number of perf if it failed."""
    failed = how >> 8
    return REPROGRAM_NAMES[how & 0xFF] + (f" ({errno.errorcode.get(failed, failed)})" if failed else "")


def bits_words(bits: int) -> str:
    """Bits that are set, by number: `bit 44`, `bits 8-31 and 44`."""
    runs: list[list[int]] = []
    for bit in range(bits.bit_length()):
        if bits >> bit & 1:
            if runs and runs[-1][1] == bit - 1:
                runs[-1][1] = bit
            else:
                runs.append([bit, bit])
    parts = [str(low) if low == high else f"{low}-{high}" for low, high in runs]
    listed = ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else "".join(parts)
    return f"bit{'s' * (bits.bit_count() > 1)} {listed}"


def msr_fault_words(why: int, index: int, reserved: int) -> str:
    """Why RDMSR or WRMSR raised #GP, one of GP_*; `reserved`: bits of the value that there must not be."""
    if why == ring.GP_ABSENT:
        return "no such register with this CPUID" if row_of(index) else "does not know this MSR"
    if why == ring.GP_RESERVED:
        return f"reserved bits {reserved:#x} are set" if reserved else "reserved bits are set"
    return ring.GP_NAMES[why]


def rdpmc_name(ecx: int) -> str:
    """The counter that ECX of RDPMC names."""
    what = _RDPMC_TYPES.get(ecx >> 16, f"no counter type {ecx >> 16:#x},")
    return f"{what} {ecx & 0xFFFF}"


def rdpmc_fault_words(ecx: int, gp: int, fixed: int) -> str:
    """Why RDPMC raised #GP where there are so many general-purpose and fixed counters."""
    kind = ecx >> 16
    if gp + fixed == 0:
        return "there is no PMU"
    if kind in (0, RDPMC_FIXED):
        return f"{rdpmc_name(ecx)} does not exist, there are {gp if kind == 0 else fixed}"
    return f"{rdpmc_name(ecx)} cannot be read"
