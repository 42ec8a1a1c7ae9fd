"""What KVM_SET_PMU_EVENT_FILTER makes of a filter: masked entries, sorted; arch/x86/kvm/pmu.c."""

from __future__ import annotations

import attrs

from vpmu_emu.errors import ConfigError
from vpmu_emu.linux.state import KVM_PMU_EVENT_ALLOW, KVM_PMU_EVENT_DENY, N_FILTER
from vpmu_emu.machine import msr_index

INTEL_ARCH_EVENT_MASK = int(msr_index.INTEL_ARCH_EVENT_MASK)
MASKED_VALID = 0xFF80_0000_0000_FFFF  # without bits 35:32, which only AMD has


@attrs.frozen
class EventFilter:
    """What KVM keeps of a filter.

    Attributes:
        action: KVM_PMU_EVENT_ALLOW or KVM_PMU_EVENT_DENY.
        fixed_counter_bitmap: one bit per fixed counter.
        includes, excludes: masked entries, each list sorted by select.
    """

    action: int
    fixed_counter_bitmap: int
    includes: tuple[int, ...]
    excludes: tuple[int, ...]


def masked_entry(select: int, mask: int, match: int, exclude: bool) -> int:
    """KVM_PMU_ENCODE_MASKED_ENTRY."""
    return select & 0xFF | (match & 0xFF) << 8 | int(exclude) << 55 | (mask & 0xFF) << 56


def make_filter(
    action: int,
    events: list[int],
    fixed_counter_bitmap: int = 0,
    masked: bool = False,
    name: str = "filter",
) -> EventFilter:
    """What the ioctl does with a filter: legacy entries become masked ones, then all are sorted.

    `name` stands before every key in messages.

    Raises:
        ConfigError: where the ioctl fails (EINVAL, E2BIG).
    """
    if action not in (KVM_PMU_EVENT_ALLOW, KVM_PMU_EVENT_DENY):
        raise ConfigError(f"{name}.action", f"{action} (EINVAL)", "0 allow, 1 deny")
    if len(events) > N_FILTER:
        raise ConfigError(f"{name}.events", f"{len(events)} events (E2BIG)", f"at most {N_FILTER}")
    entries = []
    for k, event in enumerate(events):
        if masked:
            if event & ~MASKED_VALID:
                place = f"{name}.events[{k}]"
                raise ConfigError(place, f"{event:#x} has reserved bits (EINVAL)", f"{MASKED_VALID:#x}")
            entries.append(event)
        elif not event & ~INTEL_ARCH_EVENT_MASK:  # the others never match: dropped without a word
            entries.append(masked_entry(event & 0xFF, 0xFF, event >> 8, False))

    def order(entry: int) -> tuple[int, int]:
        return entry & 0xFF, entry

    includes = sorted((e for e in entries if not e >> 55 & 1), key=order)
    excludes = sorted((e for e in entries if e >> 55 & 1), key=order)
    return EventFilter(action, fixed_counter_bitmap & 0xFFFF_FFFF, tuple(includes), tuple(excludes))
