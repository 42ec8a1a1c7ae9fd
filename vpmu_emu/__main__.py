"""The `vpmu` command, also as `python -m vpmu_emu`; Ctrl-C is quiet even while modules are imported."""

from __future__ import annotations

import gc
import os
import sys

INTERRUPTED = 130
LITTLE_TO_COLLECT = 100_000  # objects; Python's 700 is a fifth of what a start takes


def start() -> None:
    """Run the command."""
    # What modules and tables are made of stays until the end, and numpy's threads have nothing to do here.
    gc.set_threshold(LITTLE_TO_COLLECT)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        from vpmu_emu.cli import main

        main()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    # Python has put the current folder first, and only this package was meant to be found there.
    if not sys.flags.safe_path:
        sys.path.append(sys.path.pop(0))
    start()
