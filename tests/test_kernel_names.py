"""What the pages call by a kernel's name is a function here, or docs/kernel_names.md says why it is not."""

from __future__ import annotations

import io
import re
import tokenize

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.uncompiled

LIST = ROOT / "docs" / "kernel_names.md"
PAGES = [
    ROOT / "docs" / f"{name}.md"
    for name in ("modes", "divergences", "perf", "watchdog", "host", "pmu", "platform", "interpreter")
]
ROW = re.compile(r"^\| `(\w+)` \| `([\w/]+\.py)`: `(\w+)` \| (.+) \|$", re.MULTILINE)
CITED = re.compile(r"(?<![\w/.*])(_*[a-z][a-z0-9]*(?:_[a-z0-9]+)+)(?:\(\))?(?![\w/.=])")


def rows():
    return {name: (path, where, why) for name, path, where, why in ROW.findall(LIST.read_text("utf-8"))}


def cited(page):
    """Names of the kernel's form in the code spans of a page."""
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL))
    return {name for span in spans for name in CITED.findall(span)}


def sources():
    return [path.read_text("utf-8") for path in (ROOT / "vpmu_emu").rglob("*.py")]


def functions():
    form = re.compile(r"^\s*(?:def|class) (\w+)", re.MULTILINE)
    return {name for text in sources() for name in form.findall(text)}


def data():
    """Names of fields, variables, parameters, keys and files: they are there, and no functions."""
    found = set()
    for text in sources():
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NAME:
                found.add(token.string)
            elif token.type == tokenize.STRING and " " not in token.string:
                found.update(re.findall(r"\w+", token.string))
    # Rows of costs are functions of the kernel, but for those that have the name of a field or a call.
    found -= set(re.findall(r"^\[(\w+)\]", (ROOT / "isa" / "costs.toml").read_text("utf-8"), re.MULTILINE))
    for path in (ROOT / "isa").rglob("*.toml"):
        if path.name != "costs.toml":
            # `by` of msrs.toml is what a page says.
            text = re.sub(r"#[^\n]*|^by = .*", "", path.read_text("utf-8"), flags=re.MULTILINE)
            found.update(re.findall(r"\w+", text))
    return found


def test_every_kernel_name_of_the_pages_is_a_function_or_in_the_list():
    known = functions() | data() | set(rows())
    missing = {page.name: sorted(cited(page) - known) for page in PAGES if cited(page) - known}
    assert missing == {}


def test_the_list_is_true():
    table = rows()
    lines = [line for line in LIST.read_text("utf-8").splitlines() if line.startswith("| `")]
    assert len(table) == len(lines), "a row is | `name` | `file.py`: `function` | why |"
    assert list(table) == sorted(table, key=lambda name: name.lstrip("_"))
    used = set().union(*map(cited, PAGES))
    here = functions()
    for name, (path, where, why) in table.items():
        assert name not in here, f"{name} is a function: it needs no row"
        assert name in used, f"{name}: no page says it"
        text = (ROOT / "vpmu_emu" / path).read_text("utf-8")
        assert f"def {where}(" in text, f"{name}: no {where} in {path}"
        assert len(why) > 10
