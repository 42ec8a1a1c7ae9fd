"""What went wrong, where, and what to write instead; nothing here prints."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import attrs


@attrs.frozen
class Diagnostic:
    """One error of a source text.

    Attributes:
        file: name of the source.
        line: line number, from 1.
        column: column of the caret, from 1, in `source_line`.
        length: characters underlined, at least 1.
        message: one sentence.
        hint: what to do, or "".
        source_line: the line as written, or as a macro expanded it.
        chain: where the macros around it were called, innermost first.
    """

    file: str
    line: int
    column: int
    length: int
    message: str
    hint: str
    source_line: str
    chain: tuple[str, ...] = ()

    def __str__(self) -> str:
        # Tabs stay, so that the caret stands under the same place of the line above it.
        shown, start = self.source_line[:240], min(self.column - 1, 240)
        pad = "".join(c if c == "\t" else " " for c in shown[:start]).ljust(start)
        length = max(1, min(self.length, len(shown) - start))
        lines = [
            f"{self.file}:{self.line}:{self.column}: error: {self.message}",
            f"    {shown}",
            f"    {pad}^{'~' * (length - 1)}",
        ]
        if self.hint:
            lines.append(f"    hint: {self.hint}")
        lines += [f"    {place}" for place in self.chain]
        return "\n".join(lines)


class Fault(Exception):
    """A problem in the statement at hand, before it has a file and a line.

    Args:
        message: one sentence.
        hint: what to do.
        at: offset in the text that was being read.
        length: characters it covers.
    """

    #: A misspelt word and those that it may have been meant for, looked at only if it is shown.
    near: tuple[str, Iterable[str]] | None = None

    def __init__(self, message: str, hint: str = "", at: int = 0, length: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.at = at
        self.length = length

    def moved(self, by: int) -> Fault:
        """The same fault, `by` characters further right."""
        self.at += by
        return self


class DirectiveFault(Fault):
    """A fault of the directive itself, not of what follows it; the caret goes under its name."""


_FEW = 2000  # names that are compared letter by letter


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?` for the nearest known word, or "" if none is near."""
    words = list(known)
    if len(words) > _FEW:
        first = word[:1].lower()
        words = [k for k in words if abs(len(k) - len(word)) < 4 and k[:1].lower() == first][:_FEW]
    letters = sorted(word.lower())
    # Swapped letters first: difflib likes a longer word better.
    near = [k for k in words if sorted(k.lower()) == letters and k != word][:1]
    near = near or difflib.get_close_matches(word, words, n=1, cutoff=0.7)
    if not near:
        folded = {k.lower(): k for k in words}
        near = [folded[n] for n in difflib.get_close_matches(word.lower(), list(folded), 1, 0.7)]
    return f"did you mean '{near[0]}'?" if near else ""
