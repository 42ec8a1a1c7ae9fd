"""`isa/exits.toml` as frozen rows: why a processor leaves its guest, under the kernel's names."""

from __future__ import annotations

import tomllib

import attrs

from vpmu_emu.data import isa_dir
from vpmu_emu.tables.names import Names


@attrs.frozen(kw_only=True)
class Exit:
    """One basic exit reason.

    Attributes:
        name: as the kernel's trace prints it; `aliases` are other common names.
        number: the basic exit reason (SDM 3C appendix C).
        control: the VM-execution control that makes it happen, or "always".
        doc: one line.
    """

    name: str
    aliases: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    number: int
    control: str
    doc: str


EXITS: tuple[Exit, ...] = tuple(
    Exit(**row) for row in tomllib.loads((isa_dir() / "exits.toml").read_text())["exit"]
)
"""Every exit reason, by ascending number."""

_BY_NUMBER = {row.number: row for row in EXITS}
_NAMES = Names(
    "VM-exit reason", ((n, row.number) for row in EXITS for n in (row.name, *row.aliases))
)


def exit_number(name: str) -> int:
    """The basic exit reason of this name; case does not matter.

    Raises:
        UnknownNameError: no such reason; the message names the nearest.
    """
    return _NAMES[name]


def exit_name(number: int) -> str:
    """The kernel's name of a basic exit reason; "EXIT_…" if the table has no such reason."""
    row = _BY_NUMBER.get(number)
    return row.name if row else f"EXIT_{number}"
