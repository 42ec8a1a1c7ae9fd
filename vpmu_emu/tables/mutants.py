"""`isa/mutants.toml` as frozen rows: the deliberate bugs that guests must find."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable

import attrs
import numpy as np

from vpmu_emu.data import isa_dir
from vpmu_emu.tables.names import Names


@attrs.frozen(kw_only=True)
class Mutant:
    """One deliberate bug.

    Attributes:
        name: what `--inject` takes.
        group: conformance, selftest or kernel.
        doc: what is wrong, one sentence.
        unchecked: name of the MSR row whose reserved bits are accepted, "" for a bug in code.
        killer: the cheapest thing that finds it: a guest, below guests/, or a module of tests.
        bit: its bit in `core.inject`.
    """

    name: str
    group: str
    doc: str
    unchecked: str = ""
    killer: str = ""
    bit: np.uint64


MUTANTS: tuple[Mutant, ...] = tuple(
    Mutant(**row, bit=np.uint64(1 << k))
    for k, row in enumerate(tomllib.loads((isa_dir() / "mutants.toml").read_text())["mutant"])
)
"""Every bug, in the order of their bits."""

_NAMES = Names("bug", ((row.name, row) for row in MUTANTS))


def mutant(name: str) -> Mutant:
    """The bug of this name; case does not matter.

    Raises:
        UnknownNameError: no such bug; the message names the nearest.
    """
    return _NAMES[name]


def inject_bits(names: Iterable[str]) -> np.uint64:
    """What `core.inject` holds for these bugs.

    Raises:
        UnknownNameError: no such bug; the message names the nearest.
    """
    return np.uint64(sum({int(mutant(name).bit) for name in names}))


def unchecked_msrs(inject: int) -> tuple[str, ...]:
    """Names of the MSR rows whose reserved bits these bugs accept."""
    return tuple(row.unchecked for row in MUTANTS if row.unchecked and inject & int(row.bit))
