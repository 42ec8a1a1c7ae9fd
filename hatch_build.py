"""A wheel brings compiled code: `vpmu_emu.ship` makes it, with what is installed where the wheel is built.

`VPMU_WHEEL_MODES` names the modes that it is for, all without; with an empty one the wheel brings none.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

MODES = "VPMU_WHEEL_MODES"
NEEDED = ("attr", "click", "lark", "numba")


class CompiledCode(BuildHookInterface):
    """Called by hatchling."""

    made: tempfile.TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make the code, and have it put into the wheel."""
        modes = os.environ.get(MODES)
        if version == "editable" or modes == "":
            return
        missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            self.app.display_warning(f"a wheel without compiled code: no {', '.join(missing)} here")
            return
        self.made = tempfile.TemporaryDirectory(prefix="vpmu_emu-wheel-")
        path = Path(self.made.name) / "_shipped.bitcode"
        command = [sys.executable, "-m", "vpmu_emu.ship", str(path), *([modes] if modes else [])]
        done = subprocess.run(command, cwd=self.root, env={**os.environ, "PYTHONPATH": self.root})
        if done.returncode:
            self.app.abort(f"compiled code for the wheel was not made ({MODES} is {modes or 'not set'})")
        build_data["force_include"][str(path)] = "vpmu_emu/_shipped.bitcode"

    def finalize(self, *_: Any) -> None:
        """Clean up."""
        if self.made is not None:
            self.made.cleanup()
