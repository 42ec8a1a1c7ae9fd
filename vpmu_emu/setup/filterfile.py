"""A PMU event filter as TOML, checked as KVM_SET_PMU_EVENT_FILTER checks it; errors name key and place.

    action = "deny"                 # or "allow": what happens to the events of the list
    fixed_counter_bitmap = 0b001    # fixed counters: bit i set is denied ("deny") or allowed ("allow")
    masked = true                   # KVM_PMU_EVENT_FLAG_MASKED_EVENTS
    events = ["instructions", 0x01c0, { select = 0xc4, umask = 0x20, mask = 0x20, exclude = false }]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vpmu_emu.errors import ConfigError
from vpmu_emu.linux.kvm.eventfilter import (
    INTEL_ARCH_EVENT_MASK,
    EventFilter,
    make_filter,
    masked_entry,
)
from vpmu_emu.linux.state import KVM_PMU_EVENT_ALLOW, KVM_PMU_EVENT_DENY
from vpmu_emu.numerals import shown
from vpmu_emu.options import did_you_mean
from vpmu_emu.setup.keys import boolean, number, only, parsed, text_of
from vpmu_emu.tables.events import LISTS, event_codes

ACTIONS = {"allow": KVM_PMU_EVENT_ALLOW, "deny": KVM_PMU_EVENT_DENY}
KEYS = ("action", "fixed_counter_bitmap", "masked", "events")
EVENT_KEYS = ("select", "umask", "mask", "exclude")


def _entry(item: Any, place: str, masked: bool, codes: dict[str, int]) -> int:
    if isinstance(item, str):
        if item.lower() not in codes:
            hint = did_you_mean(item.lower(), codes)
            raise ConfigError(place, f"no event is named {item!r}{hint}", "a name, a number, a table")
        item = codes[item.lower()]
        return masked_entry(item & 0xFF, 0xFF, item >> 8, False) if masked else item
    if isinstance(item, int) and not isinstance(item, bool):
        if not 0 <= item < 1 << 64:
            raise ConfigError(place, f"{shown(item)} is not a 64-bit number", "0 to 2**64 - 1")
        # A short number is EVENT and UMASK; a longer one is a masked entry as the ioctl takes it.
        if masked and item <= INTEL_ARCH_EVENT_MASK:
            return masked_entry(item & 0xFF, 0xFF, item >> 8, False)
        return item
    if isinstance(item, dict):
        only(item, EVENT_KEYS, place)
        if "select" not in item:
            raise ConfigError(f"{place}.select", "is missing", "0 to 0xff")
        select = number(item, "select", place, 0, 0xFF, 0)
        umask = number(item, "umask", place, 0, 0xFF, 0)
        mask = number(item, "mask", place, 0, 0xFF, 0xFF)
        exclude = boolean(item, "exclude", place, False)
        if masked:
            return masked_entry(select, mask, umask, exclude)
        if "mask" in item or "exclude" in item:
            key = "mask" if "mask" in item else "exclude"
            raise ConfigError(f"{place}.{key}", "needs masked = true", "select umask")
        return umask << 8 | select
    raise ConfigError(place, f"{shown(item)} is not an event", "a name, a number, a table")


def parse_filter(text: str, name: str = "filter", names: str = LISTS[0]) -> EventFilter:
    """A filter from TOML text; `name` stands before every key in messages, `names` is an event list.

    Raises:
        ConfigError: broken TOML (with its line), an unknown key, a wrong value.
    """
    table = parsed(text, name)
    only(table, KEYS, name)
    action = table.get("action")
    if not isinstance(action, str) or action not in ACTIONS:
        problem = "is missing" if action is None else f"{shown(action)} is not an action"
        raise ConfigError(f"{name}.action", problem, " ".join(ACTIONS))
    masked = boolean(table, "masked", name, False)
    bitmap = number(table, "fixed_counter_bitmap", name, 0, 0xFFFF_FFFF, 0)
    events = table.get("events", [])
    if not isinstance(events, list):
        raise ConfigError(f"{name}.events", f"{shown(events)} is not a list", "[…]")
    codes = event_codes(names)
    entries = [_entry(item, f"{name}.events[{k}]", masked, codes) for k, item in enumerate(events)]
    return make_filter(ACTIONS[action], entries, bitmap, masked, name)


def load_filter(path: str | Path, names: str = LISTS[0]) -> EventFilter:
    """A filter from a TOML file; names of events are those of event list `names`.

    Raises:
        ConfigError: the file cannot be read, or as `parse_filter`.
    """
    return parse_filter(text_of(path, "filter"), str(path), names)
