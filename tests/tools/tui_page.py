"""The screenshots of docs/tui.md, and the text of the panes in them.

    python -m tests.tools.tui_page
"""

from __future__ import annotations

import asyncio
import html
import re
from collections.abc import Sequence

from tests.conftest import ROOT
from vpmu_emu.debug.session import Session
from vpmu_emu.debug.tui import Tui
from vpmu_emu.load import load

SIZES = ((80, 24), (200, 60))
GUEST = "guests/lessons/03_overflow_pmi.s"
TYPED = ("b pmi", "c", "s")


def path(width: int, height: int):
    """Where the screenshot of a size is."""
    return ROOT / "docs" / "img" / f"tui-{width}x{height}.svg"


async def settled(app: Tui, pilot) -> None:
    """Until what was asked for is done and shown."""
    await app.workers.wait_for_complete()
    for _ in range(3):
        await pilot.pause()


async def screenshot(width: int, height: int, typed: Sequence[str] = TYPED) -> str:
    """An SVG of the screen after some commands."""
    app = Tui(Session(load(str(ROOT / GUEST)), vpmu="emulated"))
    async with app.run_test(size=(width, height)) as pilot:
        await settled(app, pilot)
        for line in typed:
            app.action_obey(line)
            await settled(app, pilot)
        app.look_again()
        await settled(app, pilot)
        return app.export_screenshot(title="vpmu debug --tui")


def words(svg: str) -> list[str]:
    """The text of a screenshot, without how it looks; paths of the checkout are not part of it."""
    found = re.findall(r"<text[^>]*>(.*?)</text>", svg)
    return " ".join(html.unescape(it) for it in found).replace("\xa0", " ").replace(f"{ROOT}/", "").split()


def main() -> None:
    """Write both."""
    for width, height in SIZES:
        path(width, height).parent.mkdir(exist_ok=True)
        svg = asyncio.run(screenshot(width, height)).replace(f"{ROOT}/", "")
        path(width, height).write_text("\n".join(row.rstrip() for row in svg.splitlines()) + "\n")


if __name__ == "__main__":
    main()
