"""The whole-screen debugger says what the REPL says, at any size, and its keys are the REPL's words."""

from __future__ import annotations

import asyncio
import sys

import pytest
from click.testing import CliRunner

from tests.tools import tui_page
from vpmu_emu.asm import assemble
from vpmu_emu.cli import main
from vpmu_emu.debug import pages
from vpmu_emu.debug.session import Session

tui = pytest.importorskip("vpmu_emu.debug.tui")

SPIN = "_start: inc rax\n jmp _start\n"


@pytest.mark.parametrize(("width", "height"), tui_page.SIZES)
def test_screenshots_are_of_this_program(width, height):
    svg = asyncio.run(tui_page.screenshot(width, height))
    assert tui_page.words(svg) == tui_page.words(tui_page.path(width, height).read_text())


def test_keys_commands_errors_and_resize():
    async def act():
        session = Session(assemble(SPIN, "t.s"), vpmu="bare")
        app = tui.Tui(session, colour=False)
        async with app.run_test(size=(80, 24)) as pilot:
            await tui_page.settled(app, pilot)
            await pilot.press("f11")
            await tui_page.settled(app, pilot)
            assert session.registers()["rax"] == 1
            await pilot.press("r", "s", "enter")
            await tui_page.settled(app, pilot)
            assert session.registers()["rax"] == 0
            await pilot.press("b", "l", "a", "h", "enter")
            await tui_page.settled(app, pilot)
            assert app.repl.failures == 1
            assert [n for n in tui.PANES if app.query_one(f"#{n}").display] == ["source"]
            await pilot.press("f3")
            await tui_page.settled(app, pilot)
            assert [n for n in tui.PANES if app.query_one(f"#{n}").display] == ["regs"]
            await pilot.resize_terminal(200, 60)
            await tui_page.settled(app, pilot)
            assert all(app.query_one(f"#{n}").display for n in tui.PANES)

    asyncio.run(act())


def test_ctrl_c_stops_the_run_and_leaves_it_exact():
    async def act():
        session = Session(assemble(SPIN, "t.s"), vpmu="bare")
        app = tui.Tui(session)
        async with app.run_test(size=(80, 24)) as pilot:
            await tui_page.settled(app, pilot)
            await pilot.press("f5")
            await pilot.pause()
            await pilot.press("ctrl+c")
            await tui_page.settled(app, pilot)
            assert app.is_running
            assert app.repl.look.stop.reason == "interrupted"
        count = int(app.repl.session.registers()["rax"])
        assert count > 0
        other = Session(assemble(SPIN, "t.s"), vpmu="bare")
        other.until(f"#{instructions_of(session)}")
        assert other.registers() == session.registers()
        assert pages.time_text(other.system) == pages.time_text(session.system)  # the TSC too

    asyncio.run(act())


def instructions_of(session):
    return int(pages.time_text(session.system).split()[0].strip("#").replace(",", ""))


def test_without_the_extra_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "textual", None)
    monkeypatch.delitem(sys.modules, "vpmu_emu.debug.tui")
    path = tmp_path / "t.s"
    path.write_text(SPIN)
    result = CliRunner().invoke(main, ["debug", str(path), "--tui"])
    assert "--tui needs the extra `tui`: pip install 'vpmu-emu[tui]'" in result.output
    assert result.exit_code == 2
