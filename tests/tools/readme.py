"""Keeps README.md true: `python -m tests.tools.readme` puts the demo and the predicted table into it."""

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


def overhead(words: tuple[str, ...] = ()) -> str:
    """The first table of `vpmu overhead --plot`, and its picture of characters."""
    result = CliRunner().invoke(main, ["overhead", "--plot", *words])
    assert result.exit_code == 0, result.output
    first, _, _ = result.stdout.partition("\n\n")
    return first + "\n\n" + result.stdout[result.stdout.rindex("\n\n") + 2 :].rstrip("\n")


def with_overhead(text: str) -> str:
    """The README with the block behind the command of that name replaced."""
    before, mark, rest = text.partition("`vpmu overhead --plot`")
    head, _, behind = rest.partition("```\n")
    _, _, after = behind.partition("\n```\n")
    return f"{before}{mark}{head}```\n{overhead()}\n```\n{after}"


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    README.write_text(with_overhead(with_demo(text)), encoding="utf-8")
    picture = CliRunner().invoke(main, ["overhead", "--plot", str(ROOT / "docs" / "overhead.svg")])
    assert picture.exit_code == 0, picture.output
