"""Keeps what docs/traces.md shows true: `python -m tests.tools.traces_page` runs its commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.conftest import ROOT

PAGE = ROOT / "docs" / "traces.md"
# In a block of the page lines with `$ ` are a shell's commands, and what they print stands behind them.
BLOCK = re.compile(r"^```\n(\$ .*?)^```$", re.MULTILINE | re.DOTALL)


def shown(command: str, folder: Path) -> str:
    """What a command prints in a folder that has the guests."""
    scripts = Path(sys.executable).parent
    env = {**os.environ, "COLUMNS": "100", "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=folder, env=env, check=False
    )
    return done.stdout


def text(page: str) -> str:
    """The page with every block as its commands print it now; they run in one folder, in order."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "guests").symlink_to(ROOT / "guests")

        def renewed(found: re.Match[str]) -> str:
            commands = [line for line in found[1].splitlines() if line.startswith("$ ")]
            parts = [f"{line}\n{shown(line[2:], folder)}" for line in commands]
            return "```\n" + "".join(parts) + "```"

        return BLOCK.sub(renewed, page)


if __name__ == "__main__":
    PAGE.write_text(text(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
