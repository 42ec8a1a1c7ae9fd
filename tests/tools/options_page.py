"""Writes docs/options.md, every option of a run: `python -m tests.tools.options_page`."""

from __future__ import annotations

from tests.conftest import ROOT
from vpmu_emu.options import OPTIONS
from vpmu_emu.tables.modes import MODES

PAGE = ROOT / "docs" / "options.md"
HEAD = """# Options of a run

`vpmu run` and `vpmu debug` take them as words, a guest in its `#: args` line, and `run`, `System` and
`Session` of Python by keyword. All come from one class, `vpmu_emu/options.py`, and so does every refusal:
a name that does not exist, a value that cannot be, an option in a mode where it could have no effect, and
two that contradict each other are one sentence with the place, the nearest name and what would do, before a
file is read or anything is compiled. (`vpmu check` runs the same line in every mode: what a mode has no use
for is looked at and left out.) Regenerate with `python -m tests.tools.options_page`.

| command line | Python | usual | modes | what |
|---|---|---|---|---|
"""


def modes(option) -> str:
    """Where it can have an effect."""
    fits = [mode.name for mode in MODES.values() if option.need is None or option.need.fits(mode)]
    return "all" if len(fits) == len(MODES) else ", ".join(fits)


def usual(value) -> str:
    return {(): "", None: ""}.get(value if value != {} else (), f"`{value}`")


def text() -> str:
    rows = []
    for key, option in OPTIONS.items():
        name = f"--{option.name}"
        if option.usual is True:
            name = f"--no-{option.name}"
        words = f"`{name} {option.metavar}`".replace(" `", "`").replace("|", "\\|")
        if option.not_of_a_user:
            words = f"none: {option.not_of_a_user}"
        what = option.help
        if option.not_of_a_guest and not option.not_of_a_user:
            what += f" Not in `#: args`: {option.not_of_a_guest}."
        rows.append(f"| {words} | `{key}` | {usual(option.usual)} | {modes(option)} | {what} |\n")
    return HEAD + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
