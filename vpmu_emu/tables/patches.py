"""`isa/patches.toml` as frozen rows: the series, and what a kernel without one of its patches does."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable

import attrs

from vpmu_emu.data import isa_dir


@attrs.frozen(kw_only=True)
class Patch:
    """One patch.

    Attributes:
        number: in the series, from 1.
        title: a subject line.
        what: what it does.
        off: what a kernel without it does.
        shows: what shows that it is there.
        breaks: what goes wrong without it.
        needs: patches whose work it goes on with.
        partner: the patch without which alone it shows, 0 for none.
        reddens: the other patches that cannot be shown without it.
        outside: why it is not emulated, "" if it is.
        vector: it makes a vector of its own for guests' PMIs, or has a handler know of it.
    """

    number: int
    title: str
    what: str
    off: str = ""
    shows: str = ""
    breaks: str = ""
    needs: tuple[int, ...] = attrs.field(default=(), converter=tuple)
    partner: int = 0
    reddens: tuple[int, ...] = attrs.field(default=(), converter=tuple)
    outside: str = ""
    vector: bool = False


PATCHES: dict[int, Patch] = {
    row["number"]: Patch(**row)
    for row in tomllib.loads((isa_dir() / "patches.toml").read_text(encoding="utf-8"))["patch"]
}
"""By number, in the order of the series."""


def without_bits(numbers: Iterable[int]) -> int:
    """What `config.without` holds: bit N for patch N."""
    return sum({1 << n for n in numbers})
