"""The series as a table: every patch once, in order, each with what it does."""

from __future__ import annotations

import json

from click.testing import CliRunner

from tests.conftest import ROOT
from vpmu_emu.cli import main
from vpmu_emu.tables.generate import patches_md
from vpmu_emu.tables.patches import PATCHES, without_bits


def test_rows():
    assert list(PATCHES) == list(range(1, 42))
    for row in PATCHES.values():
        assert row.what
        assert all(n < row.number or n in (30, 31) for n in row.needs)
        assert bool(row.off) == bool(row.shows) == bool(row.breaks)
        for text in (row.what, row.off, row.shows, row.breaks, row.outside, row.title):
            assert text == text.strip().rstrip(".")
    assert [row.number for row in PATCHES.values() if row.outside] == [41]


def test_bits():
    assert without_bits(()) == 0
    assert without_bits([7, 24, 7]) == 1 << 7 | 1 << 24


def test_the_page_is_the_table():
    assert (ROOT / "docs" / "patches.md").read_text(encoding="utf-8") == patches_md()


def test_info_tells_of_a_patch():
    result = CliRunner().invoke(main, ["info", "--without", "7", "--without", "24", "--json"])
    assert [row["number"] for row in json.loads(result.output)["patches"]] == [7, 24]
    text = CliRunner().invoke(main, ["info", "--without", "24"]).output
    assert PATCHES[24].breaks in text
    for words, said in (
        (["--without", "42"], "no patch 42"), (["--without", "41"], "not emulated"),
        (["--without", "7", "--cpu", "spr"], "two questions"),
    ):  # fmt: skip
        result = CliRunner().invoke(main, ["info", *words])
        assert (result.exit_code, said in result.output) == (2, True)


def test_check_needs_a_mode_with_the_series(tmp_path):
    guest = tmp_path / "guest.s"
    lines = "#: modes bare", "#: expect all: rbx == 7", "_start: mov ebx, 7", "xor eax, eax", "out 0xf4, al"
    guest.write_text("\n".join([*lines, ""]))
    result = CliRunner().invoke(main, ["check", "--without", "24", str(guest)])
    assert (result.exit_code, "no hypervisor in mode bare" in result.output) == (2, True)
