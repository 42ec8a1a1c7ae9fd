"""How long the six published cells of `vpmu overhead` take on this machine, all compiled before.

    python benchmarks/overhead.py

Wall seconds; the aim is less than 60 on two processors.
"""

from __future__ import annotations

import time

from vpmu_emu import build
from vpmu_emu.lab import overhead
from vpmu_emu.lab.pool import cores


def main() -> None:
    """Time the six cells once."""
    designs = overhead.designs()[:3]
    missing = [mode for mode in {design.vpmu for design in designs} if not build.is_built(mode)]
    if missing:
        build.build(missing)
    start = time.perf_counter()
    cells = overhead.ask(overhead.Question(designs=designs))
    took = time.perf_counter() - start
    guest = sum(cell.seconds() for cell in cells)
    print(f"{len(cells)} cells on {cores()} processors: {took:.1f} s, for {guest:.1f} s of guest time")


if __name__ == "__main__":
    main()
