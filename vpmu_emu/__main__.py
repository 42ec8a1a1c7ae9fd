"""`python -m vpmu_emu` is the `vpmu` command."""

from __future__ import annotations

from vpmu_emu.cli import main

main()
