"""`python -m vpmu_emu` is the `vpmu` command."""

from __future__ import annotations

import sys

# Python has put the current folder first, and only this package was meant to be found there.
if not sys.flags.safe_path:
    sys.path.append(sys.path.pop(0))

from vpmu_emu.cli import main

main()
