"""Damaged sources: pieces of guests and of random statements, changed at random, are read or refused."""

from __future__ import annotations

import random
import time
from contextlib import suppress

import pytest

from tests.asm.test_statements import Writer
from tests.conftest import ROOT
from tests.tools.profiles import cases
from vpmu_emu.asm import assemble
from vpmu_emu.asm import core as module
from vpmu_emu.errors import AssemblyError

PIECES = [
    *"()[]{},:;.'\"\\#/*+-=<>!&|~%$@ \t\n", "\\@", "\\()", "/*", "*/", "//", "'\\", '"\\', "::", "==",
    ".macro m a", ".endm", ".rept 3", ".endr", ".irp r, ", ".irpc r, ", ".if ", ".else", ".endif",
    ".include ",
    ".set ", ".org ", ".skip ", ".align ", ".fill ", ".comm ", ".section ", ".purgem ", ".exitm",
    ".end",
    "0x", "0b1", "1f", "1b", "-1", "99999999999999999999", "0x7fffffffffffffff", "rip", "rsp", "gs:",
    "OFFSET ",
    "dword ptr ", "byte", "lock ", "rep ", "@GOTPCREL", "@PLT", "é", "\0", "\udcff", "\u2028", "\x85", "²",
]  # fmt: skip


def mutated(pick: random.Random, lines: list[list[str]]) -> str:
    """A piece of one source or of two, damaged."""
    some = []
    for _ in range(pick.randint(1, 2)):
        source = pick.choice(lines)
        start = pick.randrange(len(source))
        some += source[start : start + pick.randint(1, 25)]
    if pick.random() < 0.3:
        some += Writer(pick.randrange(1000), pick.randrange(1000)).source().split("\n")
    if pick.random() < 0.3:
        pick.shuffle(some)
    text = "\n".join(some)
    for _ in range(pick.randint(1, 8)):
        at = pick.randrange(len(text) + 1)
        end = min(len(text), at + pick.choice((0, 1, 1, 2, 5, 20)))
        piece = pick.choice(("", pick.choice(PIECES), pick.choice(PIECES) * 3, text[end : end + 30]))
        text = text[:at] + piece + text[end:]
    return text


@pytest.mark.parametrize("part", range(2))
def test_damaged_sources_are_read_or_refused(part, monkeypatch):
    monkeypatch.setattr(module, "MAX_STATEMENTS", 20_000)
    pick = random.Random(f"damaged {part}")
    files = sorted((ROOT / "guests").rglob("*.s")) + sorted((ROOT / "guests" / "include").glob("*.inc"))
    lines = [path.read_text().split("\n") for path in files]
    for _ in range(cases(day=100, laws=1500, night=20_000)):
        text = mutated(pick, lines)
        begin = time.process_time()
        with suppress(AssemblyError):
            assemble(text, str(ROOT / "guests" / "t.s"))
        assert time.process_time() - begin < 5, text
