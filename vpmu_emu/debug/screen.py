"""Words for a screen of any width; colour changes nothing that is said, and nothing said steers it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence

import attrs

from vpmu_emu.report import visible

WIDTH = 80  # where nothing says how wide it is
NARROWEST = 40

STYLES = {
    "title": "1", "dim": "2", "bad": "1;31", "good": "32", "here": "1;32", "changed": "1;33", "place": "34",
    "name": "36", "key": "1;36",
}  # fmt: skip


@attrs.frozen
class Text:
    """Pieces of text, each with a style of `STYLES` or none."""

    pieces: tuple[tuple[str, str], ...] = ()

    def __add__(self, other: Text | str) -> Text:
        return Text(self.pieces + text(other).pieces)

    def __radd__(self, other: str) -> Text:
        return text(other) + self

    def __len__(self) -> int:
        return sum(len(words) for _, words in self.pieces)

    def __str__(self) -> str:
        return "".join(words for _, words in self.pieces)

    def padded(self, width: int) -> Text:
        """With spaces up to `width` columns."""
        return self + " " * (width - len(self))


def text(words: Text | str, style: str = "") -> Text:
    """Words with one style; what a program may have made of them can only be read."""
    if isinstance(words, Text):
        return words
    return Text(((style, visible(words)),)) if words else Text()


def join(separator: str, parts: Iterable[Text | str]) -> Text:
    """Parts with a separator between them."""
    found = Text()
    for n, part in enumerate(parts):
        found = found + (separator if n else "") + part
    return found


def wants_colour(terminal: bool) -> bool:
    """Whether what is written may be coloured: on a terminal, unless NO_COLOR has a value."""
    return terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


@attrs.define
class Screen:
    """Where text goes.

    Attributes:
        write: takes what is shown, lines with their ends.
        width: columns; no line is longer.
        colour: whether styles are seen.
    """

    write: Callable[[str], object]
    width: int = WIDTH
    colour: bool = False

    def line(self, *parts: Text | str, hang: int = 4) -> None:
        """One line, which goes on `hang` columns from the left if it is too long."""
        for row in wrapped(join("", parts), self.width, hang):
            self.write(self.painted(row) + "\n")

    def lines(self, rows: Iterable[Text | str], hang: int = 4) -> None:
        """Several."""
        for row in rows:
            self.line(row, hang=hang)

    def painted(self, row: Text, whole: bool = False) -> str:
        """A row as it is written: without spaces at its end, unless they are wanted (`whole`)."""
        pieces = row.pieces
        if self.colour:
            pieces = tuple((s, f"\x1b[{STYLES[s]}m{words}\x1b[0m" if s else words) for s, words in pieces)
        words = "".join(words for _, words in pieces)
        return words if whole else words.rstrip()

    def banner(self, name: str, note: Text | str = "") -> None:
        """A rule with the name of what follows, and a note at its right end."""
        note = text(note)
        if len(note) > self.width - len(name) - 12:
            note = Text()
        left = text("-- ", "dim") + text(name, "title") + " "
        right = " " + note + " " + text("--", "dim") if note else Text()
        rule = "-" * max(2, self.width - len(left) - len(right))
        self.line(left, text(rule, "dim"), right)

    def columns(self, rows: Sequence[Sequence[Text | str]], indent: int = 0) -> None:
        """Rows with their cells below each other, empty columns left out; only the last cell is broken."""
        made = [[text(cell) for cell in row] for row in rows]
        widths: list[int] = []
        for row in made:
            for n, cell in enumerate(row[:-1]):
                if n == len(widths):
                    widths.append(0)
                widths[n] = max(widths[n], len(cell))
        for row in made:
            cells = [cell.padded(widths[n]) for n, cell in enumerate(row[:-1]) if widths[n]]
            hang = min(indent + sum(len(cell) + 2 for cell in cells), self.width // 2)
            self.line(" " * indent, join("  ", [*cells, row[-1]]), hang=hang)

    def flow(self, cells: Sequence[Text | str], indent: int = 0) -> None:
        """Cells of one width, as many on a line as there is room for."""
        made = [text(cell) for cell in cells]
        if not made:
            return
        wide = max(len(cell) for cell in made) + 2
        per_line = max(1, (self.width - indent + 2) // wide)
        for at in range(0, len(made), per_line):
            self.line(" " * indent, join("", [cell.padded(wide) for cell in made[at : at + per_line]]))


def wrapped(row: Text, width: int, hang: int) -> list[Text]:
    """A text as lines of at most `width` columns, broken at spaces where there are any."""
    marked = [(style, letter) for style, words in row.pieces for letter in words]
    while marked and marked[-1][1] == " ":
        marked.pop()
    found: list[Text] = []
    while True:
        room = width - (hang if found else 0)
        newline = next((n for n, (_, c) in enumerate(marked[: room + 1]) if c == "\n"), None)
        if newline is not None:
            line, marked = marked[:newline], marked[newline + 1 :]
        elif len(marked) <= room:
            line, marked = marked, []
        else:
            start = next((n for n, (_, c) in enumerate(marked) if c != " "), 0)
            end = next((n for n in range(room, start, -1) if marked[n][1] == " "), room)
            line, marked = marked[:end], marked[end:]
            while marked and marked[0][1] == " ":
                marked.pop(0)
        found.append(_packed(line) if not found else " " * hang + _packed(line))
        if not marked:
            return found


def _packed(marked: Sequence[tuple[str, str]]) -> Text:
    pieces: list[tuple[str, str]] = []
    for style, letter in marked:
        if pieces and pieces[-1][0] == style:
            pieces[-1] = (style, pieces[-1][1] + letter)
        else:
            pieces.append((style, letter))
    return Text(tuple(pieces))
