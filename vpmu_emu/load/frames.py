"""Where a function has its caller, by call frame information (DWARF 6.4, .eh_frame), through pyelftools.

What cannot be read, or is more than registers and offsets, is not there: who asks goes by the stack then.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

FRAME_SECTIONS = (".debug_frame", ".eh_frame")
RBP, RSP, RETURN_ADDRESS = 6, 7, 16  # DWARF's numbers of registers (psABI figure 3.36)
_MOST = 1 << 16  # rows


@attrs.frozen
class FrameRule:
    """What holds for the code from `low` to `high`.

    Attributes:
        register, offset: the canonical frame address is RSP or RBP plus this.
        rip, rbp: where the return address and the caller's RBP are, from there; rbp None: still in RBP.
    """

    low: int
    high: int
    register: int
    offset: int
    rip: int
    rbp: int | None


@attrs.frozen
class FrameRules:
    """The rules of a program, by address."""

    rules: tuple[FrameRule, ...] = ()

    def at(self, addr: int) -> FrameRule | None:
        """The rule for an address, None if there is none."""
        index = bisect_right(self.rules, addr, key=lambda rule: rule.low) - 1
        return self.rules[index] if index >= 0 and addr < self.rules[index].high else None


def read_rules(sections: Mapping[str, tuple[int, bytes]]) -> FrameRules:
    """The rules in sections of FRAME_SECTIONS: name to address and contents."""
    found: list[FrameRule] = []
    for name, (addr, data) in sections.items():
        try:
            found += _rules(name, addr, data)
        # Damaged tables end in any exception at all; a backtrace goes on without them.
        except Exception:  # noqa: S112
            continue
    return FrameRules(tuple(sorted(found[:_MOST], key=lambda rule: rule.low)))


def _rules(name: str, addr: int, data: bytes) -> Iterator[FrameRule]:
    from elftools.dwarf.callframe import FDE, CallFrameInfo
    from elftools.dwarf.structs import DWARFStructs

    from vpmu_emu.load.dwarf import _Stream

    structs = DWARFStructs(little_endian=True, dwarf_format=32, address_size=8)
    info: Any = CallFrameInfo(_Stream(data), len(data), addr, structs, name == ".eh_frame")
    for entry in info.get_entries():
        if not isinstance(entry, FDE):
            continue
        table = entry.get_decoded().table
        end = entry["initial_location"] + entry["address_range"]
        for row, following in zip(table, [*table[1:], None]):
            rule = _rule(row, row["pc"], following["pc"] if following else end)
            if rule is not None:
                yield rule


def _rule(row: Mapping[Any, Any], low: int, high: int) -> FrameRule | None:
    cfa, rip, rbp = row["cfa"], row.get(RETURN_ADDRESS), row.get(RBP)
    if cfa.reg not in (RBP, RSP) or cfa.offset is None or rip is None or rip.type != "OFFSET":
        return None
    if rbp is not None and rbp.type not in ("OFFSET", "SAME_VALUE"):
        return None
    kept = rbp.arg if rbp is not None and rbp.type == "OFFSET" else None
    return FrameRule(low, high, cfa.reg, cfa.offset, rip.arg, kept)
