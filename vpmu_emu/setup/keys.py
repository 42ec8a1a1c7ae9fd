"""A TOML file of a user, key by key: whatever is wrong is an error that names key and place."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vpmu_emu.errors import ConfigError
from vpmu_emu.numerals import shown
from vpmu_emu.options import did_you_mean


def text_of(path: str | Path, option: str) -> str:
    """The text of a file that an option names.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        if not Path(path).is_file() and Path(path).exists():
            raise ConfigError(option, f"cannot read {path}: not a file")  # nobody waits for a FIFO
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(option, f"cannot read {path}: {why}") from None


def parsed(text: str, name: str) -> dict[str, Any]:
    """The table of a TOML text.

    Raises:
        ConfigError: it is none; with the line.
    """
    try:
        return tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError, and numbers of more digits than Python reads
        raise ConfigError(name, f"not TOML: {error}") from None
    except RecursionError:
        raise ConfigError(name, "nested too deeply") from None


def only(table: dict[str, Any], allowed: Sequence[str], place: str) -> None:
    """Raises ConfigError if the table has another key."""
    for key in table:
        if key not in allowed:
            hint = did_you_mean(key, allowed)
            raise ConfigError(f"{place}.{key}", f"unknown key{hint}", " ".join(allowed))


def number(table: dict[str, Any], key: str, place: str, low: int, high: int, default: int) -> int:
    """A whole number in bounds, or ConfigError."""
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{place}.{key}", f"{shown(value)} is not allowed", f"{low} to {high:#x}")
    return value


def boolean(table: dict[str, Any], key: str, place: str, default: bool) -> bool:
    """True or false, or ConfigError."""
    value = table.get(key, default)
    if not isinstance(value, bool):
        raise ConfigError(f"{place}.{key}", f"{shown(value)} is not allowed", "true false")
    return value


def words(
    table: dict[str, Any], key: str, place: str, names: Sequence[str], default: Sequence[str]
) -> list[str]:
    """A list of some of `names`, or ConfigError."""
    value = table.get(key, list(default))
    if not isinstance(value, list):
        raise ConfigError(f"{place}.{key}", f"{shown(value)} is not a list", "[…]")
    for k, word in enumerate(value):
        if not isinstance(word, str) or word not in names:
            hint = did_you_mean(word, names)
            raise ConfigError(f"{place}.{key}[{k}]", f"{shown(word)} is not allowed{hint}", " ".join(names))
    return value
