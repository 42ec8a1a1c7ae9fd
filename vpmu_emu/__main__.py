"""The `vpmu` command, also as `python -m vpmu_emu`; Ctrl-C is quiet even while modules are imported."""

from __future__ import annotations

import sys

INTERRUPTED = 130


def start() -> None:
    """Run the command."""
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
