"""The `vpmu` command, also as `python -m vpmu_emu`; Ctrl-C is quiet even while modules are imported."""

from __future__ import annotations

import os
import sys

INTERRUPTED = 130


def start() -> None:
    """Run the command."""
    # numpy's threads have nothing to do here, and to start them is a sixth of a short run.
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
