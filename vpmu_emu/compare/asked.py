"""What is asked of runs that are compared: modes, options of all of them, options of one."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from vpmu_emu.errors import ConfigError
from vpmu_emu.numerals import shown
from vpmu_emu.options import OPTIONS, Options, known, parse
from vpmu_emu.tables.modes import MODES

MOST = 100_000_000  # instructions that are compared unless --max-insns says otherwise
OWN = ("vpmu", "other_vpmu", "cores", "save", "at", "restore", "trace", "horizon", "horizon_seed")
"""Options of a run that a comparison has no use for, or says in its own way."""
FIELDS = tuple(key for key in OPTIONS if key not in OWN)


def modes(text: str, *, least: int = 1, most: int = 5) -> list[str]:
    """The modes of a list with commas; the same one may be there twice.

    Raises:
        ConfigError: an unknown one, too few, too many.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        known("vpmu", "mode", name, MODES)
    if not least <= len(names) <= most:
        wanted = str(least) if least == most else f"{least} to {most}"
        raise ConfigError("vpmu", f"{shown(text)} names {len(names)}", f"{wanted} of {' '.join(MODES)}")
    return names


def _joined(usual: Options, key: str, words: str) -> Options:
    try:
        asked = shlex.split(words)
    except ValueError as error:
        raise ConfigError(key, f"{shown(words)} cannot be read: {str(error).lower()}") from None
    try:
        own = parse(asked)
    except ConfigError as error:
        raise ConfigError(key, str(error).removeprefix("args: ")) from None
    changes: dict[str, Any] = {}
    for field, option in OPTIONS.items():
        value = getattr(own, field)
        if value != option.usual and field in OWN:
            raise ConfigError(key, f"--{option.name} is not an option of one of the runs")
        if value != option.usual:
            before = getattr(usual, field)
            changes[field] = (
                {**before, **value} if isinstance(value, Mapping)
                else (*before, *value) if option.many else value
            )  # fmt: skip
    return attrs.evolve(usual, **changes)


def two(
    asked: Mapping[str, Any], vpmu: str, with_a: str = "", with_b: str = ""
) -> tuple[tuple[str, Options], tuple[str, Options]]:
    """(name, options) of both runs.

    Args:
        asked: options of both; those that have no effect in one of the modes are left out there.
        vpmu: two modes with a comma.
        with_a, with_b: further options of one, as words.

    Raises:
        ConfigError: what cannot be, the same run twice included.
    """
    names = modes(vpmu, least=2, most=2)
    common = Options.of({"max_insns": MOST, **{k: v for k, v in asked.items() if v is not None}})
    common.check_values()
    common.check_some_mode(names)
    found = []
    for name, key, words in zip(names, ("with-a", "with-b"), (with_a, with_b), strict=True):
        options = attrs.evolve(common, vpmu=name).heeded()
        if words:
            options = _joined(options, key, words)
        options.check()
        found.append((f"{name} {words}".strip(), options))
    if found[0][1] == found[1][1]:
        raise ConfigError("vpmu", "both runs are the same", "two modes, or --with-a, --with-b")
    return found[0], found[1]


def several(asked: Mapping[str, Any], vpmu: str) -> list[Options]:
    """The options of a run in each of several modes.

    Raises:
        ConfigError: as `two`.
    """
    names: Sequence[str] = list(dict.fromkeys(modes(vpmu)))
    for name in names:
        if MODES[name].hypervisor and not MODES[name].enable_pmu:
            raise ConfigError("vpmu", f"guests have no PMU in mode {name}", " ".join(
                mode for mode, row in MODES.items() if row.enable_pmu or not row.hypervisor))
    common = Options.of({k: v for k, v in asked.items() if v is not None})
    common.check_values()
    common.check_some_mode(names)
    found = [attrs.evolve(common, vpmu=name).heeded() for name in names]
    for options in found:
        options.check()
    return found
