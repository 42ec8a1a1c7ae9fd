"""These tests call kernel functions one by one, which only uncompiled code allows."""

from __future__ import annotations

import numba

if not numba.config.DISABLE_JIT:
    collect_ignore_glob = ["test_*.py"]
