"""Runs tests/linux/uncompiled in a process of its own, with NUMBA_DISABLE_JIT=1."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numba
import pytest

HERE = Path(__file__).resolve().parent
FILES = sorted(path.name for path in (HERE / "uncompiled").glob("test_*.py"))


@pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="collected by itself in this run")
@pytest.mark.parametrize("name", FILES)
def test_uncompiled(name):
    env = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", name]
    done = subprocess.run(
        command, cwd=HERE / "uncompiled", env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
