"""`isa/assumptions.toml` as frozen rows: what a prediction takes for granted, why, and the other answer."""

from __future__ import annotations

import tomllib
from typing import Any

import attrs

from vpmu_emu.data import isa_dir


@attrs.frozen
class Assumption:
    """One thing that a published measurement does not say.

    Attributes:
        name: of the row.
        value: what is taken for granted.
        why: the reason, found without what was measured.
        changes: what the other answer would change, "" if there is none to try.
        instead: that answer, as a run is asked it: guest_hz, host_hz, defsym, options.
        never: modes that cannot be run so.
    """

    name: str
    value: str
    why: str
    changes: str = ""
    instead: dict[str, Any] = attrs.field(factory=dict)
    never: list[str] = attrs.field(factory=list)


ASSUMPTIONS: dict[str, Assumption] = {
    name: Assumption(name=name, **row)
    for name, row in tomllib.loads((isa_dir() / "assumptions.toml").read_text(encoding="utf-8")).items()
}
"""Every assumption of `vpmu overhead`, by its name."""
