"""Imports point down only; numba is named in one file; the top-level import stays light."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.tools import project_map

pytestmark = pytest.mark.uncompiled

# For each part of the package, the parts below it. A part may import itself and these.
BELOW: dict[str, set[str]] = {
    "errors": set(),
    "data": set(),
    "numerals": set(),
    "views": {"errors", "data", "numerals", "tables", "_jit", "machine", "linux"},
    "setup": {"errors", "data", "numerals", "tables", "_jit", "asm", "load", "machine", "linux", "views",
              "options", "snapshot"},
    "snapshot": {"errors", "_jit"},
    "output": {"errors", "numerals"},
    "_jit": {"data", "errors"},
    "process": {"data", "_jit"},
    "tables": {"errors", "data"},
    "asm": {"errors", "data", "numerals", "tables"},
    "load": {"errors", "data", "tables", "asm"},
    "machine": {"errors", "data", "tables", "_jit"},
    "linux": {"errors", "data", "numerals", "tables", "_jit", "machine"},
    "build": {"errors", "data", "tables", "_jit", "machine", "asm", "system", "process"},
    "ship": {"tables", "_jit", "machine", "build"},
    "system": {"errors", "data", "numerals", "tables", "_jit", "asm", "load", "machine", "linux", "build",
               "snapshot", "output", "options", "views", "setup", "report"},
    "options": {"errors", "data", "numerals", "tables", "asm", "linux"},
    "report": {"errors", "data", "tables"},  # a drawn table: for whoever shows something
    "checks": {"errors", "data", "numerals", "tables", "asm", "load", "system", "options", "report"},
}
CLIENTS = {"debug", "traces", "lab", "bench", "bench_guest", "explanation", "compare"}
for part in CLIENTS:
    BELOW[part] = set(BELOW) - CLIENTS
BELOW["api"] = set(BELOW)
BELOW["cli"] = set(BELOW)
BELOW["__init__"] = set(BELOW)
BELOW["__main__"] = {"cli"}
# The debugger shows recent events in the words of the trace.
BELOW["debug"] = BELOW["debug"] | {"traces"}
BELOW["bench_guest"] = BELOW["bench_guest"] | {"bench"}
# An explanation is a run that stops before and behind its access.
BELOW["explanation"] = BELOW["explanation"] | {"debug"}

FILES = sorted((ROOT / "vpmu_emu").rglob("*.py"))


# One level deeper: within a part, what must not know what.
APART = (
    ("linux/perf", "linux.kvm"),  # perf has users; it does not know them
    ("linux/perf", "linux.syscalls"),
    ("linux/kvm", "linux.syscalls"),
    ("linux/kvm/vmx", "linux.kvm.x86"),  # what stands for vmx.c is called by what stands for x86.c
    ("linux", "setup"),
    ("linux", "views"),
    ("views", "linux.syscalls"),
)


def imported(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which layer is meant"
            found.add(node.module or "")
            if node.module == "vpmu_emu":
                found.update(f"vpmu_emu.{alias.name}" for alias in node.names)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT / "vpmu_emu").as_posix())
def test_imports_point_down(path):
    part = path.relative_to(ROOT / "vpmu_emu").parts[0].removesuffix(".py")
    assert part in BELOW, f"say in BELOW where {part} stands"
    for name in imported(ast.parse(path.read_text(encoding="utf-8"))):
        if not name.startswith("vpmu_emu."):
            continue
        target = name.split(".")[1]
        if (ROOT / "vpmu_emu" / f"{target}.py").exists() or (ROOT / "vpmu_emu" / target).is_dir():
            assert target == part or target in BELOW[part], f"{part} imports {name}"


def test_a_field_of_the_vmcs_is_named_by_intels_half_alone():
    """x86.c, lapic.c and pmu.c know no vendor: what they want of a VMCS goes through kvm/vmx/."""
    named = re.compile(r"\b(vmcs\.)?V_[A-Z]|\bvm(read|write)\(")
    found = [
        f"{path.relative_to(ROOT)}:{n}"
        for path in sorted((ROOT / "vpmu_emu" / "linux").rglob("*.py"))
        if "vmx" not in path.parts
        for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if named.search(line)
    ]
    assert found == []


@pytest.mark.parametrize(("folder", "other"), APART)
def test_rooms_are_apart(folder, other):
    for path in (ROOT / "vpmu_emu" / folder).rglob("*.py"):
        for name in imported(ast.parse(path.read_text(encoding="utf-8"))):
            assert not f"{name}.".startswith(f"vpmu_emu.{other}."), f"{path} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT / "vpmu_emu").as_posix())
def test_only_jit_names_numba(path):
    names = {name.split(".")[0] for name in imported(ast.parse(path.read_text(encoding="utf-8")))}
    inside = path.relative_to(ROOT / "vpmu_emu").as_posix()
    assert inside == "_jit/compiler.py" or "numba" not in names
    assert inside.startswith("_jit/") or "llvmlite" not in names


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT / "vpmu_emu").as_posix())
def test_first_line_is_the_law(path):
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert text, "every module says in its first line what holds in it"
    assert len(text.splitlines()[0]) <= 108


@pytest.mark.parametrize("module", ["vpmu_emu", "vpmu_emu.cli", "vpmu_emu.asm", "vpmu_emu.setup.vm"])
def test_import_is_light(module):
    code = f"import sys, {module}; print('numba' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_the_command_alone_reads_no_tables_of_instructions():
    """Help, a version, a completed word: each command imports what it needs itself."""
    heavy = ("vpmu_emu.asm", "vpmu_emu.system", "vpmu_emu.traces", "lark")
    code = f"import sys, vpmu_emu.cli; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_part_is_on_the_map():
    folders = {path.parent for path in FILES if path.name != "__main__.py"}
    on_it = {ROOT / part for part, _ in project_map.PARTS}
    assert folders <= on_it


@pytest.mark.parametrize(("question", "file", "name"), project_map.QUESTIONS)
def test_the_map_answers(question, file, name):
    text = (ROOT / file).read_text(encoding="utf-8")
    found = f"def {name}(" in text or (f"\n{name} = " in text if file.endswith(".py") else name in text)
    assert found, f"{question} {name} is not in {file}"


def test_map_is_true():
    written = (ROOT / "docs" / "map.md").read_text(encoding="utf-8")
    assert written == project_map.text(), "run `python -m tests.tools.project_map`"


IN_ANY_ORDER = """
import importlib, sys
for name in sys.argv[1:]:
    for loaded in [m for m in sys.modules if m.startswith("vpmu_emu.linux")]:
        del sys.modules[loaded]
    importlib.import_module(name)
"""


def test_every_module_of_the_host_can_be_the_first_that_is_imported():
    """Two that need each other work as long as somebody else happens to import the right one before."""
    files = (ROOT / "vpmu_emu" / "linux").rglob("*.py")
    modules = (".".join(f.relative_to(ROOT).with_suffix("").parts) for f in files)
    names = sorted(name.removesuffix(".__init__") for name in modules)
    env = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, "-c", IN_ANY_ORDER, *names]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_helpers_of_tests_lie_in_a_folder_of_their_own():
    """A module of `tests/` is a test; what tests share, and what writes docs, is in `tests/tools/`."""
    files = {path.name for path in (ROOT / "tests").glob("*.py")} - {"__init__.py", "conftest.py"}
    assert sorted(name for name in files if not name.startswith("test_")) == []
    assert list((ROOT / "tests" / "tools").glob("test_*.py")) == []
    tools = {path.stem for path in (ROOT / "tests" / "tools").glob("*.py")} - {"__init__"}
    form = re.compile(r"^ *(?:from tests import |from tests\.|import tests\.)(\w+)", re.MULTILINE)
    for path in (ROOT / "tests").rglob("*.py"):
        found = {name for name in form.findall(path.read_text(encoding="utf-8")) if name in tools}
        assert found == set(), f"{path}: what tests share is imported from tests.tools"
