"""`isa/figures.toml` as frozen rows: what somebody has measured, and whether a cost may come from it."""

from __future__ import annotations

import tomllib
from typing import Any

import attrs

from vpmu_emu.data import isa_dir

COST, VALIDATION, TARGET = "cost", "validation", "target"


def _ends(value: float | list[float]) -> tuple[float, float]:
    low, high = value if isinstance(value, list) else (value, value)
    return low, high


@attrs.frozen(kw_only=True)
class Figure:
    """A published figure.

    Attributes:
        name: its row.
        value: (low, high); both the same where one number was published.
        unit: cycles of the core, tsc for cycles of the TSC, ns, percent or count.
        context: of what, and on which machine.
        source: where it stands.
        use: COST, a cost comes from it; VALIDATION, it is there to be predicted; TARGET, what is asked for.
        predicted_by: of a VALIDATION, what predicts it; "" if that is not modelled.
    """

    name: str
    value: tuple[float, float] = attrs.field(converter=_ends)
    unit: str = attrs.field(validator=attrs.validators.in_(("cycles", "tsc", "ns", "percent", "count")))
    context: str
    source: str
    use: str = attrs.field(validator=attrs.validators.in_((COST, VALIDATION, TARGET)))
    predicted_by: str = ""


_ROWS: dict[str, dict[str, Any]] = tomllib.loads((isa_dir() / "figures.toml").read_text())

FIGURES: dict[str, Figure] = {name: Figure(name=name, **row) for name, row in _ROWS.items()}
"""Every figure by its name, in the order of the table."""
