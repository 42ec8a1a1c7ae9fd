"""System calls of host programs: rare, so plain Python over the same record, nothing kept beside it."""

from __future__ import annotations

from typing import Any


def handle(host: Any) -> None:
    """Do what the current task of this CPU came into the kernel for."""
    raise NotImplementedError
