"""Where the data folders are: beside the package in a wheel, beside the checkout otherwise."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent


def _folder(name: str) -> Path:
    # Not importlib.resources: an editable install would answer with a stale copy.
    shipped = _HERE / f"_{name}"
    return shipped if shipped.is_dir() else _HERE.parent / name


def isa_dir() -> Path:
    """The folder of tables that say what the machine is."""
    return _folder("isa")


def guests_dir() -> Path:
    """The folder of guest programs that come with the package."""
    return _folder("guests")
