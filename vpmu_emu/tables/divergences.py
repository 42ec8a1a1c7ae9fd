"""`guests/divergences/rows.toml` as frozen rows: where the modes differ, on purpose, and who decides it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator

import attrs

from vpmu_emu.data import guests_dir

SAME = "the same"  # as in the row above


@attrs.frozen(kw_only=True)
class Divergence:
    """One difference that is meant.

    Attributes:
        name: how `vpmu diff` and tests call it; it does not change when the words do.
        condition, modes, differs, by: the cells of docs/divergences.md; `modes` may be "".
        when: a formula over the facts of a first difference (vpmu_emu/compare/facts.py) that is true of
            this one; "" where no run of a guest can show it.
        pair: the modes of the two runs in which its guest shows it, as `--vpmu` takes them.
        args: options of both runs; args_a, args_b: of one.
        decided: `by`, with what it means where that is the same as in the row above.
        alone: why no two runs of one guest show it; "" if they do.
    """

    name: str
    condition: str
    modes: str = ""
    differs: str
    by: str = ""
    when: str = ""
    pair: str = "bare,emulated"
    args: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    args_a: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    args_b: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    decided: str = ""
    alone: str = ""

    @property
    def functions(self) -> tuple[str, ...]:
        """The kernel's names among who decides it."""
        return tuple(re.findall(r"`(\w+)`", self.decided))

    @property
    def asked_for(self) -> bool:
        """Whether it needs an option that brings it."""
        return "quirk." in self.when or "lazy and not against.lazy" in self.when

    @property
    def command(self) -> str:
        """The command that shows it, "" if none does."""
        if self.alone:
            return ""
        words = ["vpmu diff", f"guests/divergences/{self.name}.s", "--vpmu", self.pair, *self.args]
        for key, side in (("--with-a", self.args_a), ("--with-b", self.args_b)):
            if side:
                words += [key, f'"{" ".join(side)}"']
        return " ".join(words)


@attrs.frozen(kw_only=True)
class Part:
    """A table of the page: headline, words before and behind it, heads of its columns, rows."""

    title: str
    text: str = ""
    heads: tuple[str, ...] = attrs.field(converter=tuple)
    rows: tuple[Divergence, ...]


def _parts() -> Iterator[Part]:
    found = tomllib.loads((guests_dir() / "divergences" / "rows.toml").read_text(encoding="utf-8"))
    for part in found["part"]:
        rows: list[Divergence] = []
        for row in part.pop("row"):
            by = row.get("by", "")
            if by.startswith(SAME):
                by = rows[-1].decided + by.removeprefix(SAME)
            rows.append(Divergence(**row, decided=by))
        yield Part(**part, rows=tuple(rows))


PARTS: tuple[Part, ...] = tuple(_parts())
"""The tables of docs/divergences.md, in order."""

DIVERGENCES: dict[str, Divergence] = {row.name: row for part in PARTS for row in part.rows}
"""Every row by its name."""

_CELLS: dict[str, Callable[[Divergence], str]] = {
    "name": lambda row: f"`{row.name}`", "condition": lambda row: row.condition,
    "quirk": lambda row: f"`{row.name}`", "modes": lambda row: row.modes, "decided by": lambda row: row.by,
}  # fmt: skip
_SHOWN = """
## Shown by

`vpmu diff` finds the row by its guest; rows that no two runs of one guest can show say why.

| name | shown by |
|---|---|
"""


def divergences_md() -> str:
    """The text of docs/divergences.md."""
    lines: list[str] = []
    for part in PARTS:
        lines += [f"{'#' if not lines else '##'} {part.title}", "", part.text.strip(), ""]
        lines += [f"| {' | '.join(part.heads)} |", "|---" * len(part.heads) + "|"]
        for row in part.rows:
            cells = [_CELLS[head](row) if head in _CELLS else row.differs for head in part.heads]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    rows = [
        f"| `{row.name}` | {f'none: {row.alone}' if row.alone else f'`{row.command}`'} |"
        for row in DIVERGENCES.values()
    ]
    return "\n".join(lines).rstrip("\n") + "\n" + _SHOWN + "\n".join(rows) + "\n"
