"""Words for what the trace has as numbers, for all who read it."""

from __future__ import annotations

import errno

from vpmu_emu.linux.trace_kinds import REPROGRAM_NAMES
from vpmu_emu.machine.ring import BY_NO_BITMAP, BY_RANGE, BY_RDPMC_EXITING
from vpmu_emu.tables.linux import constant

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
