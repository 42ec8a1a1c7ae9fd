"""A worker of a build imports this very package, nothing of the current folder, ends with its parent."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vpmu_emu import _jit, build

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not _jit.COMPILES, reason="nothing is compiled in this run"),
]
COMPILE_ONE = """
import os, sys
from queue import SimpleQueue
from vpmu_emu import _jit, build
inbox = SimpleQueue()
worker = build.Worker(inbox)
name = sys.argv[1]
worker.send("compile", name, build.load_signatures()["functions"][name])
print(worker.process.pid, flush=True)
print(inbox.get()[1][0])
worker.close()
"""


@pytest.fixture
def trap(tmp_path):
    """A folder whose modules leave a file behind if anybody imports them."""
    place = tmp_path / "trap"
    text = f"open({str(tmp_path / 'sprung')!r}, 'a').write(__name__)\n"
    for name in ("json.py", "subprocess.py", "numba/__init__.py", "vpmu_emu/__init__.py"):
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (place / "numba" / "_version.py").write_text("1.2.3")
    (place / ".numba_config.yaml").write_text("disable_jit: 1\n")
    return place


def start(tmp_path, *path, cwd, name="vpmu_emu.machine.bits:lowest_bit", args=()):
    script = tmp_path / "script"
    script.mkdir(exist_ok=True)
    (script / "main.py").write_text(COMPILE_ONE)
    env = {**os.environ, "VPMU_CACHE_DIR": "cache", "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.Popen(
        [sys.executable, *args, script / "main.py", name], cwd=cwd, env=env,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_cold_build_runs_nothing_of_the_current_folder(tmp_path, trap):
    child = start(tmp_path, ROOT, cwd=trap)
    out, err = child.communicate(timeout=120)
    assert out.split()[1:] == ["done"], err
    assert not (tmp_path / "sprung").exists(), (tmp_path / "sprung").read_text()
    assert list((trap / "cache").glob("vpmu_emu.machine.bits/*/**/*.nbc"))  # where the parent looks


def test_a_worker_has_the_package_of_its_parent(tmp_path):
    """Found by a relative PYTHONPATH, with another one installed."""
    place = tmp_path / "checkout"
    for name in ("vpmu_emu", "isa"):
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, place / name, ignore=skip)
    bits = place / "vpmu_emu" / "machine" / "bits.py"
    bits.write_text(bits.read_text() + "\n\n@jit()\ndef only_here(x):\n    return x\n")
    hints = place / "vpmu_emu" / "_signatures.json"
    known = json.loads(hints.read_text())
    known["functions"]["vpmu_emu.machine.bits:only_here"] = ["uint64"]
    hints.write_text(json.dumps(known))
    child = start(tmp_path, ".", cwd=place, name="vpmu_emu.machine.bits:only_here")
    out, err = child.communicate(timeout=120)
    assert out.split()[1:] == ["done"], err


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    child = start(tmp_path, ROOT, cwd=tmp_path, name="vpmu_emu.machine.dispatch:run_slice")
    worker = int(child.stdout.readline())
    time.sleep(1.5)  # numba is imported, or the compiler is at work
    child.send_signal(signal.SIGKILL)
    end = time.monotonic() + 20
    while time.monotonic() < end and _runs(worker):
        time.sleep(0.05)
    assert not _runs(worker)
    child.stdout.close()
    assert child.stderr.read() == ""
    child.stderr.close()
    child.wait()


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Warmed:
    """A worker that has run its guest already."""

    def __init__(self, inbox):
        self.inbox = inbox

    def send(self, what, mode, spec):
        assert (what, spec) == ("warm", None)
        self.inbox.put((self, ["done", mode, "vpmu_emu.machine.engine:run_core"]))

    def close(self):
        pass


def test_a_record_forgets_entries_and_modes_that_are_gone(tmp_path, monkeypatch):
    path = tmp_path / "_signatures.json"
    gone = ["vpmu_emu.machine.engine:ran_core", "vpmu_emu.machine.angine:run_core"]
    lost = {name: ["uint64"] for name in gone}
    roots = {"emulated": [*gone, "vpmu_emu.machine.engine:reset_core"], "emulate": gone}
    path.write_text(json.dumps({"roots": roots, "functions": lost}))
    monkeypatch.setattr(build, "SIGNATURES", path)
    monkeypatch.setattr(build, "Worker", Warmed)
    monkeypatch.setattr(_jit, "cached_signatures", lambda name: [])
    found = build.record(["bare"])
    assert found["roots"] == {
        "bare": ["vpmu_emu.machine.engine:run_core"], "emulated": ["vpmu_emu.machine.engine:reset_core"],
    }  # fmt: skip
    assert found["functions"] == {}
    assert build.load_signatures() == found
