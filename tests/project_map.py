"""Writes docs/map.md, every module with its law: `python -m tests.project_map`."""

from __future__ import annotations

import ast

from tests.conftest import ROOT

HEAD = """# Map

One line per module, its own first line. Imports point up this page only: a part may use what stands
above it, and `tests/test_layers.py` holds it to that. Regenerate with `python -m tests.project_map`.

"""

PARTS = (
    ("isa/", "the machine as data"),
    ("guests/", "programs to run: lessons, workloads, includes"),
    ("vpmu_emu/", ""),
    ("vpmu_emu/tables/", ""),
    ("vpmu_emu/asm/", ""),
    ("vpmu_emu/load/", ""),
    ("vpmu_emu/machine/", ""),
    ("vpmu_emu/linux/", ""),
    ("vpmu_emu/linux/perf/", ""),
    ("vpmu_emu/linux/kvm/", ""),
    ("vpmu_emu/debug/", ""),
    ("vpmu_emu/trace/", ""),
    ("vpmu_emu/lab/", ""),
)


def law(path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


def text() -> str:
    out = [HEAD]
    for part, says in PARTS:
        folder = ROOT / part
        files = sorted(folder.glob("*.py"))
        data = [] if files else _content(folder)
        if not files and not data:
            continue
        own = law(folder / "__init__.py") if (folder / "__init__.py").exists() else says
        out.append(f"## {part}\n\n{own}\n\n")
        for path in files:
            out += [f"- `{path.name}`: {law(path)}\n"] * (path.name != "__init__.py")
        for path in data:
            first = next(iter(sorted(path.glob("*")))) if path.is_dir() and any(path.iterdir()) else path
            head = _comment(first) if path.is_file() else ""
            out.append(f"- `{path.name}{'/' if path.is_dir() else ''}`{': ' + head if head else ''}\n")
        out.append("\n")
    return "".join(out).rstrip() + "\n"


def _content(folder) -> list:
    # Git keeps no empty folders.
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [p for p in found if p.is_file() or any(p.iterdir())]


def _comment(path) -> str:
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.lstrip("#/ ").strip()
        if words:
            return words
    return ""


if __name__ == "__main__":
    (ROOT / "docs" / "map.md").write_text(text(), encoding="utf-8")
