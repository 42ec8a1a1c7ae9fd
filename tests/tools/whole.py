"""What tests of whole machines share: programs by name, runs of them, everything that a run leaves."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

from tests.conftest import ROOT
from tests.reference import generator
from vpmu_emu._jit import COMPILES
from vpmu_emu.asm import Program, assemble, assemble_file
from vpmu_emu.system import System
from vpmu_emu.tables import modes

MODES = ("bare", "emulated", "passthrough")
LESSONS = tuple(sorted(path.stem for path in (ROOT / "guests" / "lessons").glob("*.s")))
FILTER = ROOT / "guests" / "lessons" / "04_filter.toml"
MOST = 20_000 if COMPILES else 1_000


@cache
def lesson(name: str) -> Program:
    """A lesson, assembled once."""
    return assemble_file(ROOT / "guests" / "lessons" / f"{name}.s")


def lesson_options(name: str, mode: str) -> dict[str, Any]:
    """What a lesson needs besides the mode."""
    return {"filter": FILTER} if "filter" in name and modes.MODES[mode].enable_pmu else {}


def seeded(kind: str, seed: int) -> Program:
    """A generated program."""
    return assemble(generator.from_seed(kind, seed), f"{kind}-{seed}")


def machine(program: Program, mode: str, **options: Any) -> System:
    """A small machine that has not run."""
    options.setdefault("ram", 2)
    options.setdefault("max_insns", MOST)
    return System(program, vpmu=mode, **options)


def reg(system: System, number: int) -> int:
    """A general register of the program, by its number."""
    return list(system.registers().values())[number]


def state(system: System) -> tuple[bytes, bytes]:
    """Record and memory, the host's pages included."""
    return system.record(), system.M.tobytes()


def digest(system: System) -> str:
    """A hash of `state`."""
    record, memory = state(system)
    return hashlib.sha256(record + memory).hexdigest()


def fields_that_differ(a: bytes, b: bytes) -> list[str]:
    """Names of the record's fields whose bytes differ, for messages."""
    from vpmu_emu.linux.state import SYSTEM

    found: list[str] = []

    def walk(dtype: Any, at: int, name: str) -> None:
        if dtype.subdtype is not None:
            kind, shape = dtype.subdtype
            if kind.fields or len(shape) == 1:
                for k in range(shape[0]):
                    step = dtype.itemsize // shape[0]
                    inner = kind if len(shape) == 1 else type(dtype)((kind, shape[1:]))
                    if a[at + k * step : at + (k + 1) * step] != b[at + k * step : at + (k + 1) * step]:
                        walk(inner, at + k * step, f"{name}[{k}]")
                return
        if dtype.fields:
            for field in dtype.names:
                kind, offset = dtype.fields[field][:2]
                part = slice(at + offset, at + offset + kind.itemsize)
                if a[part] != b[part]:
                    walk(kind, at + offset, f"{name}.{field}" if name else field)
            return
        size = dtype.itemsize
        left, right = (int.from_bytes(x[at : at + size], "little") for x in (a, b))
        found.append(f"{name}: {left:#x} against {right:#x}")

    if a != b:
        walk(SYSTEM, 0, "")
    return found[:12]


def assert_same(a: tuple[bytes, bytes], b: tuple[bytes, bytes], what: str) -> None:
    """Equal record and memory, or a message with the fields and addresses."""
    assert fields_that_differ(a[0], b[0]) == [], what
    if a[1] != b[1]:
        at = next(k for k in range(len(a[1])) if a[1][k] != b[1][k])
        raise AssertionError(f"{what}: memory differs from {at:#x} on")
