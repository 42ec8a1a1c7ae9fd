"""How much a random test does: by day, in `make laws`, by night (VPMU_HYPOTHESIS=dev, ci, nightly)."""

from __future__ import annotations

import os

from vpmu_emu._jit import COMPILES

PROFILES = {"uncompiled": 4, "dev": 25, "ci": 100, "nightly": 10_000}  # hypothesis' examples
# Uncompiled code runs thousands of times slower: coverage needs every path once, not often.
PROFILE = os.environ.get("VPMU_HYPOTHESIS", "dev" if COMPILES else "uncompiled")


def cases(day: int, laws: int, night: int, uncompiled: int = 2) -> int:
    """The number of cases that this run of the tests asks for."""
    return {"uncompiled": uncompiled, "ci": laws, "nightly": night}.get(PROFILE, day)
