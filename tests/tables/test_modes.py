"""A mode is a row of isa/modes.toml: code asks its columns and never its name."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from vpmu_emu.linux.state import CONFIG, VM
from vpmu_emu.tables.generate import modes_md, passed_md, with_block
from vpmu_emu.tables.modes import KERNELS, MODES, VPMUS, Kernel, Mode, kernel_version, mode_names

pytestmark = pytest.mark.uncompiled


def test_rows_are_whole():
    assert list(MODES) == list(mode_names()) == ["bare", "none", "emulated", "passthrough", "mediated"]
    assert {mode.kernel.name for mode in MODES.values()} == set(KERNELS)
    for mode in MODES.values():
        assert mode.owner in (("perf", "guest") if mode.hypervisor else ("",)), mode
        assert mode.enable_pmu or not mode.owns_pmu, mode
        assert not mode.doc.endswith("."), mode
    assert [name for name, mode in MODES.items() if mode.owns_pmu] == ["passthrough", "mediated"]
    vpmus = {name: mode.vpmu for name, mode in MODES.items() if mode.enable_pmu}
    assert vpmus == {name: name for name in VPMUS}
    assert {mode.vpmu for mode in MODES.values() if not mode.enable_pmu} == {"emulated"}
    assert not MODES["none"].enable_pmu
    assert KERNELS["rfc-v1"].series
    assert KERNELS["rfc-v1"].version == kernel_version(6, 7)


@pytest.mark.parametrize("row", [{"colour": 1}, {"owner": None, "kernal": 1}])
def test_a_row_with_an_unknown_key_is_refused(row):
    with pytest.raises(TypeError, match=r"colour|kernal"):
        Mode(name="x", kernel=KERNELS["silicon"], doc="", **row)
    with pytest.raises(TypeError):
        Kernel(name="x", doc="", **row)


def test_no_code_compares_a_modes_name():
    found = []
    for path in (ROOT / "vpmu_emu").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Compare):
                continue
            names = {leaf.value for leaf in ast.walk(node) if isinstance(leaf, ast.Constant)} & set(MODES)
            # `none` is also what other things are called
            if names - {"none"} or (names and "mode" in ast.unparse(node)):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    assert not found


def test_documents_are_those_of_the_table():
    text = (ROOT / "docs" / "modes.md").read_text()
    for mark, block in (("isa/modes.toml", modes_md()), ("isa/msrs.toml", passed_md())):
        assert with_block(text, mark, block) == text
        assert block in text
    schema = json.loads((ROOT / "docs" / "schema.json").read_text())
    assert schema["properties"]["vpmu"]["enum"] == list(mode_names())


def test_the_record_has_what_code_asks():
    assert CONFIG.names is not None
    assert VM.names is not None
    assert {"kernel", "series", "enable_pmu"} <= set(CONFIG.names)
    assert "vpmu" in VM.names


def test_a_mode_of_another_name_takes_one_row(tmp_path):
    skip = shutil.ignore_patterns("__pycache__")
    for folder in ("vpmu_emu", "isa", "guests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=skip)
    table = tmp_path / "isa" / "modes.toml"
    row = next(part for part in table.read_text().split("[[mode]]") if 'name = "emulated"' in part)
    with table.open("a") as file:
        file.write("\n[[mode]]" + row.replace("emulated", "twin"))

    def run(mode: str) -> dict:
        out = subprocess.run(
            [sys.executable, "-P", "-m", "vpmu_emu", "run", "guests/lessons/01_count.s",
             "--vpmu", mode, "--json"],
            cwd=tmp_path, check=True, capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": str(tmp_path), "NUMBA_DISABLE_JIT": "1"},
        )  # fmt: skip
        found = json.loads(out.stdout)
        assert found.pop("vpmu") == mode
        return {key: value for key, value in found.items() if key not in ("wall_s", "jit_s")}

    assert run("twin") == run("emulated")
