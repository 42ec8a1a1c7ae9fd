"""Keeps the tables of README.md true: `python -m tests.tools.readme` puts today's demo into it."""

from __future__ import annotations

from click.testing import CliRunner

from tests.conftest import ROOT
from vpmu_emu.cli import main

README = ROOT / "README.md"


def demo() -> str:
    """The tables of `vpmu demo`, up to the host's events."""
    result = CliRunner().invoke(main, ["demo"])
    assert result.exit_code == 0, result.output
    text = result.stdout
    start = text.index("\n\n") + 2
    return text[start : text.index("perf events of the host")].rstrip()


def with_demo(text: str) -> str:
    """The README with its first block replaced."""
    before, _, rest = text.partition("```\n")
    _, _, after = rest.partition("\n```\n")
    return f"{before}```\n{demo()}\n```\n{after}"


if __name__ == "__main__":
    README.write_text(with_demo(README.read_text(encoding="utf-8")), encoding="utf-8")
