"""What every guest leaves in every mode, as text whose diff says which field of which run changed.

    python -m tests.tools.records check [RUN ...]   status 1 and a list of what differs; RUN: part of a name
    python -m tests.tools.records renew             write tests/records.txt anew, empty moved_paths.toml

A line is a path of the record without indices, then its elements that are not zero, by index; long ones
as a hash. What most runs of a mode have stands once under the name of the mode, the rest under the run.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from tests.conftest import ROOT
from tests.tools import same_records

BASELINE = ROOT / "tests" / "records.txt"
LONG = 60  # characters of a line's values, before they become a hash
ABSENT = "0"
EMPTY = """\
# What a change of structure did to the record; `same_records compare` and `records check` read it. Paths
# are without indices and stand for all that begins with them.
gone = []
new = []

[moved]
"""

Run = Mapping[str, str]


def by_field(leaves: Mapping[str, int | str]) -> dict[str, str]:
    """Path without indices -> its elements in words."""
    found: dict[str, list[tuple[str, str]]] = {}
    for path, value in leaves.items():
        index = ",".join(re.findall(r"\[(\d+)\]", path))
        found.setdefault(same_records.plain(path), []).append((index, str(value)))
    return {path: _words(elements) for path, elements in found.items()}


def _words(elements: Iterable[tuple[str, str]]) -> str:
    ranges: list[list[str]] = []
    following = ""
    for index, value in elements:
        if ranges and index and index == following and value == ranges[-1][2]:
            ranges[-1][1] = index
        else:
            ranges.append([index, index, value])
        following = str(int(index) + 1) if index.isdecimal() else ""
    text = " ".join(
        value if not first else f"[{first}]={value}" if first == last else f"[{first}-{last}]={value}"
        for first, last, value in ranges
    )
    return text if len(text) <= LONG else "#" + hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def write(runs: Mapping[str, Run]) -> str:
    """The text of a baseline."""
    lines = []
    for mode in dict.fromkeys(name.split()[1] for name in runs):
        those = {name: run for name, run in runs.items() if name.split()[1] == mode}
        paths = sorted(set().union(*those.values()))
        usual = {
            path: Counter(run.get(path, ABSENT) for run in those.values()).most_common(1)[0][0]
            for path in paths
        }
        lines += [f"* {mode}", *(f"{path} {usual[path]}" for path in paths if usual[path] != ABSENT)]
        for name, run in those.items():
            own = {path: run.get(path, ABSENT) for path in paths}
            lines += [f"* {name}", *(f"{path} {own[path]}" for path in paths if own[path] != usual[path])]
    return "\n".join(lines) + "\n"


def read(text: str) -> dict[str, dict[str, str]]:
    """The runs of a baseline."""
    usual: dict[str, dict[str, str]] = {}
    found: dict[str, dict[str, str]] = {}
    for line in text.splitlines():
        head, _, rest = line.partition(" ")
        if head == "*":
            guest, _, mode = rest.rpartition(" ")
            into = found.setdefault(rest, dict(usual[mode])) if guest else usual.setdefault(rest, {})
        elif rest == ABSENT:
            del into[head]
        else:
            into[head] = rest
    return found


def names() -> list[str]:
    """The runs of the baseline."""
    return list(read(BASELINE.read_text(encoding="utf-8")))


def today(wanted: Iterable[str] | None = None) -> Iterator[tuple[str, dict[str, str]]]:
    """Runs, as they are now: all, or those of these names."""
    for name, leaves in same_records.each("all", None, wanted):
        yield name, by_field(leaves)


def compare(wanted: Iterable[str] | None = None) -> list[str]:
    """A line for everything that differs from the baseline for no reason that is named."""
    stored = read(BASELINE.read_text(encoding="utf-8"))
    lines = []
    ran = set()
    for name, new in today(wanted):
        ran.add(name)
        if name not in stored:
            lines.append(f"{name}: not stored")
            continue
        lines += [
            f"{name}: {line}" for line in same_records.differences(stored[name], new, *same_records.moved())
        ]
    expected = stored.keys() if wanted is None else set(wanted)
    return lines + [f"{name}: stored, not run" for name in sorted(expected - ran)]


def main() -> int:
    """Status 0 if all is as stored, or was written."""
    what, *parts = sys.argv[1:]
    if what == "check":
        wanted = [name for name in names() if any(part in name for part in parts)] if parts else None
        lines = compare(wanted)
        print(*lines, sep="\n", end="\n" if lines else "")
        return 1 if lines else 0
    assert what == "renew", __doc__
    BASELINE.write_text(write(dict(today())), encoding="utf-8")
    same_records.MOVED.write_text(EMPTY, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
