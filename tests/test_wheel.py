"""A wheel brings compiled code: what is installed runs without the compiler; what does not fit, with it."""

from __future__ import annotations

import fcntl
import json
import os
import re
import resource
import shutil
import subprocess
import sys

import pytest
from llvmlite import binding as llvm

from tests.conftest import ROOT
from tests.test_shipped import full_disk
from vpmu_emu import _jit
from vpmu_emu._jit import native

pytestmark = [
    pytest.mark.laws,
    pytest.mark.slow,
    pytest.mark.skipif(not _jit.COMPILES, reason="nothing is compiled in this run"),
]
LESSON = "vpmu_emu/_guests/lessons/01_count.s"
OF_THE_MACHINE = ("jit_s", "wall_s")
RUN = "import sys; from vpmu_emu.__main__ import start; sys.argv[0] = 'vpmu'; start()"
# An entry that is compiled in two seconds: what it does to a core, and whether numba was there.
RESET = """
import hashlib, json, sys
import numpy as np
from vpmu_emu._jit import shipped
from vpmu_emu.machine import engine
from vpmu_emu.machine.state import CORE
core = np.zeros(1, CORE)[0]
engine.reset_core(core, np.uint64(3))
print(json.dumps([hashlib.sha256(core.tobytes()).hexdigest(), "numba" in sys.modules, shipped.why_not()]))
"""


class Installed:
    """A wheel's content in a folder of its own, and no code anywhere else."""

    def __init__(self, place, scratch):
        self.place, self.scratch = place, scratch

    def python(self, code, *args, cache, preexec=None, **settings):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "NUMBA_", "VPMU_"))}
        env |= {"PYTHONPATH": str(self.place), "VPMU_CACHE_DIR": str(self.scratch / cache), **settings}
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-c", code, *args], capture_output=True, text=True, cwd=self.scratch,
            env=env, preexec_fn=preexec,
        )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        self.seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        self.said = done.stderr
        return json.loads(done.stdout)

    def run(self, *args, cache, **settings):
        found = self.python(RUN, "run", str(self.place / LESSON), "--json", *args, cache=cache, **settings)
        return {key: value for key, value in found.items() if key not in OF_THE_MACHINE}

    @property
    def code(self):
        return self.place / "vpmu_emu" / "_shipped.bitcode"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of an installed wheel; several processes that test share one."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    base = tmp_path_factory.getbasetemp()
    made = base.parent / f"wheel-{run}" if run else base / "wheel"
    made.mkdir(exist_ok=True)
    place = made / "site"
    with (made / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "NUMBA_"))}
            built = subprocess.run(
                [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", made, ROOT],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                cwd=ROOT, env={**env, "VPMU_WHEEL_MODES": "bare", "VPMU_CACHE_DIR": str(made / "cache")},
            )  # fmt: skip
            assert built.returncode == 0, built.stdout
            (wheel,) = made.glob("*.whl")
            subprocess.run(
                [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", place, wheel],
                check=True, env=env,
            )  # fmt: skip
    return place


@pytest.fixture
def installed(site, tmp_path):
    return Installed(site, tmp_path)


def test_a_first_run_needs_no_compiler(installed):
    first = installed.run(cache="first")
    assert "generating code of bare" in installed.said
    assert installed.seconds <= 12
    assert installed.run(cache="first") == first
    assert "generating" not in installed.said
    assert installed.seconds <= 2  # 0.6, where nothing else runs
    again = subprocess.run(
        [sys.executable, "-m", "vpmu_emu", "run", installed.place / LESSON, "--json"],
        capture_output=True, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    here = json.loads(again.stdout)
    assert {key: value for key, value in here.items() if key not in OF_THE_MACHINE} == first


def test_several_cores_and_native_regions_came_too(installed):
    loaded = RUN.replace("start()", "\ntry: start()\nfinally: assert 'numba' not in sys.modules")
    args = "run", str(installed.place / LESSON), "--json"
    assert installed.python(loaded, *args, "--cores", "2", cache="more")["exit_code"] == 0
    loop = str(installed.place / "vpmu_emu/_guests/workloads/mixed.s")
    found = installed.python(loaded, "run", loop, "--json", "--engine", "translator", cache="more")
    assert (found["exit_code"], found["engine"]) == (0, "translator")
    assert list((installed.scratch / "more").glob("*/*/regions/*.code"))


def test_folders_where_nothing_is_kept(installed):
    expected = installed.run(cache="whole")
    (installed.scratch / "file").write_text("")
    assert installed.run(cache="file") == expected
    assert "compiled code is not kept" in installed.said

    def full():
        full_disk().__enter__()

    found = installed.python(
        RUN, "run", str(installed.place / LESSON), "--json", cache="full", preexec=full
    )
    assert {key: found[key] for key in expected} == expected
    assert "compiling" not in installed.said


def test_the_code_knows_no_processor(installed):
    head, at = native.opened(installed.code.read_bytes())
    for _, _, _, _, size in head["functions"].values():
        text = str(llvm.parse_bitcode(installed.code.read_bytes()[at : at + size]))
        assert not re.search("target-cpu|target-features|tune-cpu", text)
        at += size


def test_what_does_not_fit_is_compiled(site, tmp_path):
    installed = Installed(shutil.copytree(site, tmp_path / "site"), tmp_path)
    state, numba, why = installed.python(RESET, cache="reset")
    assert (numba, why) == (False, "")
    assert installed.python(RESET, cache="reset") == [state, False, ""]
    whole = installed.code.read_bytes()
    for what, damage in (
        ("damaged", lambda data: data[:-1]),
        ("numba", older),
        ("no compiled code", None),
    ):
        installed.code.unlink()
        if damage is not None:
            installed.code.write_bytes(damage(whole))
        found, numba, why = installed.python(RESET, cache=what)
        assert (found, numba) == (state, True)
        assert what in why
    installed.code.write_bytes(whole)
    found, numba, why = installed.python(RESET, cache="checked", NUMBA_BOUNDSCHECK="1")
    assert (found, numba) == (state, True)
    assert "settings" in why
    with (installed.place / "vpmu_emu" / "machine" / "u64.py").open("a") as source:
        source.write("\n# changed\n")
    found, numba, why = installed.python(RESET, cache="changed")
    assert (found, numba) == (state, True)
    assert "sources" in why


def older(data):
    """As if another numba had made it."""
    head, at = native.opened(data)
    head["made"]["numba"] = "0.1"
    return native.sealed(head, [data[at:]])
