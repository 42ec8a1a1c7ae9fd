"""The same sweep on a Dask cluster: the same rows, whoever is killed; another package is refused."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from tests.lab.test_sweep import LONG, folder, spec_of, started, wait_for, written
from vpmu_emu.lab.cluster import Cluster
from vpmu_emu.lab.sweep import sweep

__all__ = ["folder"]  # a fixture


class Dask:
    """A scheduler and its workers, processes of this machine."""

    def __init__(self, place):
        self.file = place / "scheduler.json"
        self.processes = []
        self.scheduler = self._start("scheduler", "--port", "0")
        self.workers = []
        deadline = time.monotonic() + 60
        self.address = None
        while self.address is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
            with contextlib.suppress(FileNotFoundError, ValueError):
                self.address = json.loads(self.file.read_text())["address"]

    def _start(self, *what, **env):
        command = [sys.executable, "-m", "dask", *what, "--scheduler-file", self.file, "--no-dashboard"]
        process = subprocess.Popen(list(map(str, command)), cwd=self.file.parent, env={**os.environ, **env},
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        self.processes.append(process)
        return process

    def worker(self, **env):
        # Without the process that would start it again: who is killed is gone.
        self.workers.append(self._start("worker", "--nthreads", "2", "--no-nanny", **env))
        return self.workers[-1]

    def close(self):
        for process in reversed(self.processes):
            process.kill()
            process.wait()


@pytest.fixture
def dask(tmp_path):
    (tmp_path / "dask").mkdir()
    cluster = Dask(tmp_path / "dask")
    yield cluster
    cluster.close()


@pytest.mark.laws
def test_a_sweep_of_200_points_is_the_same_on_dask_although_a_worker_is_killed(folder, dask):
    """One of two workers, in the middle; byte by byte the same as here."""
    points = 200
    path = spec_of(folder, LONG.format(points=points, low=1_500_000, high=3_000_000))
    out = folder / "x.parquet"
    first, _ = dask.worker(), dask.worker()
    driver = started(path, out, "--dask", dask.address)
    wait_for(out, points // 3, driver)
    first.kill()
    text = driver.communicate(timeout=300)[0]
    assert driver.returncode == 0, text
    assert sweep(path, folder / "local.parquet").ran == points
    assert (folder / "local.parquet").read_bytes() == out.read_bytes()


@pytest.mark.laws
def test_answers_that_a_worker_takes_with_it_are_made_again(dask):
    """They were done; nobody had fetched them yet."""
    first = dask.worker()
    with Cluster(dask.address) as cluster:
        cluster.prepare([])
        answers = cluster.run_each(str, range(4))
        found = [next(answers)]
        futures = cluster._client.futures
        wait_until(lambda: all(each.status == "finished" for each in futures.values()))
        dask.worker()
        first.kill()
        wait_until(lambda: any(each.status != "finished" for each in futures.values()))
        found += answers
    assert sorted((answer.index, answer.value) for answer in found) == [(n, str(n)) for n in range(4)]


def wait_until(holds, seconds=60):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.laws
def test_a_scheduler_that_goes_takes_nothing_with_it(folder, dask):
    path, out = spec_of(folder, LONG.format(points=30, low=9_000_000, high=9_999_999)), folder / "x.parquet"
    dask.worker()
    driver = started(path, out, "--dask", dask.address)
    wait_for(out, 3, driver)
    dask.scheduler.kill()
    text = driver.communicate(timeout=120)[0]
    assert driver.returncode == 2
    assert text.endswith(f"vpmu: dask: the scheduler at {dask.address} has gone; what was made is kept\n")
    assert "Traceback" not in text
    done = sweep(path, out)
    assert 0 < done.ran < 30
    assert len(done.rows) == 30


@pytest.mark.laws
def test_ctrl_c_keeps_what_was_made(folder, dask):
    path, out = spec_of(folder, LONG.format(points=30, low=9_000_000, high=9_999_999)), folder / "x.parquet"
    dask.worker()
    driver = started(path, out, "--dask", dask.address)
    wait_for(out, 2, driver)
    driver.send_signal(signal.SIGINT)
    text = driver.communicate(timeout=60)[0]
    assert driver.returncode == 130
    assert text.endswith("vpmu: interrupted\n")
    assert "Traceback" not in text
    assert written(out) == 0
    assert 0 < sweep(path, out).ran < 30


@pytest.mark.laws
def test_nobody_at_the_address_is_told_in_seconds(folder):
    path, out = spec_of(folder, LONG.format(points=2, low=2, high=9)), folder / "x.parquet"
    begin = time.monotonic()
    driver = started(path, out, "--dask", "127.0.0.1:1")
    text = driver.communicate(timeout=60)[0]
    assert driver.returncode == 2
    assert "vpmu: dask: no scheduler answers at 127.0.0.1:1 within 5 seconds" in text
    assert len(text.splitlines()) == 2
    assert time.monotonic() - begin < 30
    assert not out.exists()


@pytest.mark.laws
def test_a_cluster_without_a_worker_is_told(folder, dask):
    path, out = spec_of(folder, LONG.format(points=2, low=2, high=9)), folder / "x.parquet"
    driver = started(path, out, "--dask", dask.address)
    text = driver.communicate(timeout=60)[0]
    assert driver.returncode == 2
    assert text.endswith(f"vpmu: dask: the scheduler at {dask.address} has no worker\n")
    assert not out.exists()


@pytest.mark.laws
def test_a_worker_with_another_package_is_refused(folder, dask):
    """One of other sources is named before anything runs, and so is one that has none."""
    other = folder / "other"
    shutil.copytree(ROOT / "vpmu_emu", other / "vpmu_emu", ignore=shutil.ignore_patterns("__pycache__"))
    for data in ("isa", "guests"):
        (other / data).symlink_to(ROOT / data)
    changed = other / "vpmu_emu" / "numerals.py"
    changed.write_text(changed.read_text() + "# changed\n")
    dask.worker(PYTHONPATH=str(other))
    path, out = spec_of(folder, LONG.format(points=2, low=2, high=9)), folder / "x.parquet"
    text = started(path, out, "--dask", dask.address).communicate(timeout=60)[0]
    assert "vpmu: dask: tcp://" in text
    assert ": a worker has vpmu_emu " in text
    assert ", and this is vpmu_emu " in text
    assert not out.exists()
    dask.workers[0].kill()
    broken = folder / "broken"
    (broken / "vpmu_emu").mkdir(parents=True)
    (broken / "vpmu_emu" / "__init__.py").write_text("")
    dask.worker(PYTHONPATH=str(broken))
    time.sleep(5)
    text = started(path, out, "--dask", dask.address).communicate(timeout=60)[0]
    assert "does not have this package of vpmu_emu (" in text
    assert "Traceback" not in text
