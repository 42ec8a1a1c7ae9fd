"""Programs of the host: they assemble everywhere, and what they print is what the laws of perf say."""

from __future__ import annotations

import pytest

from tests.asm.gnu import gnu
from tests.conftest import ROOT
from vpmu_emu.load import load

pytestmark = pytest.mark.uncompiled

PROGRAMS = sorted((ROOT / "guests" / "host").glob("*.s"))


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda p: p.stem)
def test_assembles_as_gnu_as_does(path, tmp_path):
    program = load(path)
    theirs = gnu(path.read_text(), tmp_path, ROOT / "guests" / "include")
    for segment in program.segments:
        address, data = theirs[segment.name]
        assert (address, data[: len(segment.data)]) == (segment.addr, segment.data), segment.name
