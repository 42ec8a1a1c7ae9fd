"""How many cases each differential test has compared, by oracle and row; shown at the end of a run."""

from __future__ import annotations

from collections import Counter, defaultdict

# oracle -> "mnemonic operands/width" -> cases
CASES: defaultdict[str, Counter[str]] = defaultdict(Counter)


def count_case(oracle: str, text: str, width: int) -> None:
    """One case of the row (mnemonic, form, width) was compared with `oracle`."""
    CASES[oracle][f"{text}/{width}"] += 1


def compared(oracle: str, text: str, width: int) -> int:
    """Cases of that row so far, in this process."""
    return CASES[oracle][f"{text}/{width}"]
