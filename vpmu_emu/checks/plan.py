"""What the `#:` lines of one guest ask for: read once, with the place of whatever is wrong.

Lines `#: key value` of a guest (GNU as sees comments):

    #: cpu spr
    #: args --filter deny-c0.toml
    #: modes bare emulated passthrough mediated
    #: expect all: pmc0 == insns(first, last) + 1
    #: expect emulated passthrough: exits.CPUID >= 3

A guest of a conformance row also says which one, whose kernels it holds for (left out: what its modes
stand for), and the test that it re-expresses:

    #: row P6 P7
    #: kernels silicon linux-7.0
    #: upstream x86/pmu.c check_gp_counters

A program of the host names the guest that it runs beside:

    #: guest ../lessons/01_count.s
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

import attrs

from vpmu_emu.checks.language import (
    CheckError,
    Expectation,
    ProgramLike,
    expectation_of,
    named_modes,
    nearest,
)
from vpmu_emu.errors import ConfigError, VpmuError
from vpmu_emu.tables.modes import KERNELS, MODES

KEYS = ("cpu", "args", "modes", "expect", "guest", "row", "kernels", "upstream")
ROW = re.compile(r"[A-Z]\d+|X-[a-z0-9-]+")


@attrs.frozen
class Plan:
    """All that the comments of one guest ask for."""

    file: str
    modes: tuple[str, ...]
    cpu: str | None
    args: tuple[str, ...]
    expectations: tuple[Expectation, ...]
    rows: tuple[str, ...] = ()  # conformance rows that this guest stands for
    kernels: tuple[str, ...] = ()  # of KERNELS, in its order
    upstream: str = ""
    guest: str = ""  # this is a program of the host; the guest beside it
    lines: tuple[tuple[int, str], ...] = ()  # where `cpu` and `args` come from


def read_plan(
    file: str, lines: Iterable[tuple[int, str]], program: ProgramLike, modes: Sequence[str]
) -> Plan:
    """Understand the `#:` lines of one guest.

    Args:
        file: name for messages.
        lines: (line number, text after `#:`), in order.
        program: the assembled guest, whose symbols may be used.
        modes: every mode that exists.

    Raises:
        CheckError: an unknown key, mode or name, or a broken expression; with its place.
    """
    lines = list(lines)
    found: dict[str, tuple[str, ...]] = {}
    cpu: str | None = None
    upstream = guest = ""
    expectations = []
    for number, text in lines:
        key, _, value = text.strip().partition(" ")
        where = (file, number)
        if key not in KEYS:
            raise CheckError(*where, f"unknown key {key!r}", hint=nearest(key, KEYS))
        if key == "cpu":
            cpu = value.strip()
        elif key == "args":
            found["args"] = found.get("args", ()) + _args(value, where)
        elif key == "modes":
            found[key] = named_modes(value, modes, where)
        elif key in ("row", "kernels"):
            found[key] = found.get(key, ()) + _words(key, value, where)
        elif key == "upstream":
            upstream = value.strip()
        elif key == "guest":
            guest = str(Path(file).parent / value.strip())
            if not Path(guest).is_file():
                raise CheckError(*where, f"no such guest: {guest}")
    named = found.get("modes", tuple(m for m in modes if MODES[m].default))
    for number, text in lines:
        key, _, value = text.strip().partition(" ")
        if key == "expect":
            expectations.append(expectation_of(file, number, value.strip(), program, named))
    kernels = found.get("kernels", [MODES[mode].kernel.name for mode in named])
    return Plan(
        file, named, cpu, found.get("args", ()), tuple(expectations), found.get("row", ()),
        tuple(kernel for kernel in KERNELS if kernel in kernels), upstream,
        guest, tuple((n, text) for n, text in lines if text.split(" ", 1)[0] in ("cpu", "args")),
    )  # fmt: skip


def _args(value: str, where: tuple[str, int]) -> tuple[str, ...]:
    from vpmu_emu.options import parse

    try:
        words = tuple(shlex.split(value))
        parse(words)
    except ValueError as error:
        raise CheckError(*where, f"args: {error}") from None
    except ConfigError as error:
        raise CheckError(*where, str(error)) from None
    return words


def _words(key: str, value: str, where: tuple[str, int]) -> tuple[str, ...]:
    words = tuple(value.replace(",", " ").split())
    if not words:
        raise CheckError(*where, f"{key}: nothing named")
    for word in words:
        if key == "row" and not ROW.fullmatch(word):
            raise CheckError(
                *where, f"no row can be called {word!r}", hint="P6, or X-os-bit for a row of our own"
            )
        if key == "kernels" and word not in KERNELS:
            raise CheckError(
                *where, f"unknown kernel {word!r}", hint=nearest(word, KERNELS)
            )
    return words


def find_guests(paths: Sequence[str | Path]) -> list[Path]:
    """Files as named, and every `.s` file with `#:` lines below each folder, in order.

    Raises:
        CheckError: a path that does not exist, or a folder with nothing to check.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = [p for p in sorted(path.rglob("*.s")) if _may_be_guest(p)]
            if not inside:
                raise VpmuError(f"{path}: no guest with `#: expect` lines in this folder")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise VpmuError(f"{path}: no such file or folder")
    return list(dict.fromkeys(found))


def _may_be_guest(path: Path) -> bool:
    # What cannot be read is one, so that its turn says why.
    if path.is_dir():
        return False
    try:
        return not path.is_file() or re.search(rb"^#:", path.read_bytes(), re.MULTILINE) is not None
    except OSError:
        return True
