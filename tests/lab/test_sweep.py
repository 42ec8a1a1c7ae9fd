"""Whole sweeps: every point once, whatever was killed on the way, and the same rows wherever they ran."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import vpmu_emu
from tests.conftest import ROOT
from tests.tools import sweep_page
from vpmu_emu import cli
from vpmu_emu.cli import main
from vpmu_emu.errors import VpmuError
from vpmu_emu.lab import pool
from vpmu_emu.lab.spec import read_spec
from vpmu_emu.lab.sweep import Lab, found, summary, sweep

# Its rounds are a parameter, and so is what it ends with.
GUEST = """
        .ifndef ROUNDS
        .equ ROUNDS, 10
        .endif
        .ifndef CODE
        .equ CODE, 0
        .endif
_start: mov ecx, ROUNDS
work:   dec ecx
        jnz work
        mov qword ptr [rip + total], ROUNDS
        mov eax, CODE
        out 0xf4, al
        .data
total:  .quad 0
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "guest.s").write_text(GUEST)
    return tmp_path


def spec_of(folder, text):
    path = folder / "spec.toml"
    path.write_text(f'program = "guest.s"\n{text}')
    return path


def run(*args, status=0):
    done = CliRunner().invoke(main, ["sweep", *map(str, args)])
    assert done.exit_code == status, done.output
    return done


SMALL = """
measure = ["instructions", "mem64(total)", "perf.nmis"]
[grid]
defsym.ROUNDS = [10, 20, 30]
"""


def test_a_row_has_its_parameters_its_state_and_its_measures(folder):
    seen = []
    done = sweep(spec_of(folder, SMALL), folder / "x.parquet", jobs=1, progress=lambda *t: seen.append(t))
    assert seen == [(0, 3, 0), (1, 3, 0), (2, 3, 0), (3, 3, 0)]
    assert (done.points, done.ran, done.failed) == (3, 3, 0)
    table = pq.read_table(folder / "x.parquet")
    rows = sorted(table.to_pylist(), key=lambda row: row["defsym.ROUNDS"])
    assert rows == [
        {"point": row["point"], "defsym.ROUNDS": n, "status": "ok", "error": None,
         "instructions": 1 + 2 * n + 3, "mem64(total)": n, "perf.nmis": None}
        for row, n in zip(rows, (10, 20, 30), strict=True)
    ]  # fmt: skip
    assert table.equals(done.table())
    assert sorted(table["point"].to_pylist()) == table["point"].to_pylist()


def test_the_package_has_it_and_compiles_what_is_missing(folder):
    done = vpmu_emu.sweep(
        {"program": str(folder / "guest.s"), "grid": {"vpmu": ["bare"]}}, folder / "out", jobs=1
    )
    assert done.path == folder / "out" / "points.parquet"
    (row,) = done.rows
    assert row["instructions"] == 24
    assert row["counters.pmc0"] == 0
    assert row["registers.rcx"] == 0
    assert row["hw.eventsel.0"] == 0
    assert row["stop"] == "debug-exit"
    assert not {"wall_s", "jit_s", "stop_line", "engine"} & set(row), "nothing of this machine"
    assert not any("/" in str(value) for value in row.values()), "no folder"


FAILING = """
measure = ["instructions", "exit_code"]
[grid]
defsym.CODE = [0, 3]
apicv = [true, false]
"""


def test_points_that_fail_are_rows_and_run_again_only_if_asked(folder):
    path, out = spec_of(folder, FAILING), folder / "x.parquet"
    text = run(path, "--out", out, status=1).output
    rows = {(row["defsym.CODE"], row["apicv"]): row for row in found(out).rows}
    assert {key: (row["status"], row["instructions"]) for key, row in rows.items()} == {
        (0, True): ("ok", 24), (3, True): ("failed", 24), (0, False): ("failed", None),
        (3, False): ("failed", None),
    }  # fmt: skip
    assert rows[3, True]["error"] == "exit code 3"
    assert "there is no hypervisor in mode bare" in rows[0, False]["error"]
    assert "there is no hypervisor in mode bare" in text
    before = out.read_bytes()
    assert '"ran": 0' in run(path, "--out", out, "--json", status=1).stdout
    assert '"ran": 3' in run(path, "--out", out, "--json", "--retry-failed", status=1).stdout
    assert out.read_bytes() == before


def test_how_a_run_ends_decides_whether_it_failed(folder):
    text = """
        measure = ["instructions", "stop"]
        [zip]
        defsym.CODE = [0, 3, 0, 0]
        defsym.ROUNDS = [10, 11, 0, 1]
        max-insns = [1_000, 1_000, 1_000, 1_000]
        [options]
        vpmu = "bare"
    """
    out = folder / "x.parquet"
    run(spec_of(folder, text), "--out", out, status=1)
    rows = {row["defsym.ROUNDS"]: row for row in found(out).rows}
    told = {n: (row["status"], row["error"], row["stop"]) for n, row in rows.items()}
    assert told == {
        10: ("ok", None, "debug-exit"), 11: ("failed", "exit code 3", "debug-exit"),
        0: ("ok", None, "max-insns"), 1: ("ok", None, "debug-exit"),
    }  # fmt: skip
    assert rows[0]["instructions"] == 1000, "an end that was asked for"


def test_a_run_that_nobody_ends_is_ended_and_has_failed(folder, monkeypatch):
    from vpmu_emu.lab import sweep as module

    monkeypatch.setattr(module, "MOST_CYCLES", 10_000)
    out = folder / "x.parquet"
    done = sweep(spec_of(folder, "[grid]\ndefsym.ROUNDS = [0]"), out, jobs=1)
    assert done.rows[0]["error"] == "did not end within 10,000 cycles; give max-cycles"


def test_errors_of_points_name_no_folder(folder):
    (folder / "guest.s").write_text(GUEST.replace("work:", ".if ROUNDS == 3\n mvo eax, 1\n .endif\nwork:"))
    out = folder / "x.parquet"
    done = sweep(spec_of(folder, "[grid]\ndefsym.ROUNDS = [2, 3]"), out, jobs=1)
    (error,) = [row["error"] for row in done.rows if row["status"] == "failed"]
    assert error.startswith("guest.s:")
    assert str(folder) not in error


def test_a_program_that_needs_files_of_its_own_goes_to_workers_as_bytes(folder):
    """One that needs none is assembled where it runs."""
    path = spec_of(folder, '[grid]\ndefsym.ROUNDS = [2, 3]')
    alone = Lab(read_spec(path))
    assert len({id(alone.task(point).program) for point in alone.spec.points()}) == 1
    (folder / "own.inc").write_text(GUEST)
    (folder / "guest.s").write_text('.include "own.inc"\n')
    lab = Lab(read_spec(path))
    tasks = [lab.task(point) for point in lab.spec.points()]
    assert [task.program.defsym for task in tasks] == [{"ROUNDS": 2}, {"ROUNDS": 3}]
    assert [row["registers.rip"] for row in sweep(path, folder / "x.parquet", jobs=1).rows]


def die(measures, task):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_point_that_kills_its_process_is_a_row(folder, monkeypatch):
    from vpmu_emu.lab import sweep as module

    monkeypatch.setattr(module, "measured", die)
    done = sweep(spec_of(folder, "[grid]\ndefsym.ROUNDS = [2]"), folder / "x.parquet", jobs=1)
    assert (done.rows[0]["status"], done.rows[0]["error"]) == ("failed", pool.KILLED)


@pytest.mark.laws
@pytest.mark.parametrize("name", sweep_page.SHIPPED)
def test_sweeps_that_are_shipped_hold_what_their_page_shows(name):
    rows = sweep_page.rows_of(name)
    assert {row["error"] for row in rows} == {None}
    if name in sweep_page.SHOWN:
        assert sweep_page.SHOWN[name](rows) == sweep_page.shown(name), "python -m tests.tools.sweep_page"


# --- the command -----------------------------------------------------------------------------------


def test_what_is_missing_is_compiled_before_progress_is_told(folder):
    told = []
    sweep(spec_of(folder, SMALL), folder / "x.parquet", jobs=1, ready=lambda modes: told.append(modes),
          progress=lambda *numbers: told.append(numbers))  # fmt: skip
    assert told == [("bare",), (0, 3, 0), (1, 3, 0), (2, 3, 0), (3, 3, 0)]


def test_a_bar_is_drawn_with_its_first_number(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with cli._progress("3 points of [a].toml") as outer:
        with cli._progress("compiling bare") as inner:
            inner(1, 2, "highest_bit")
        outer(1, 3, "points")
    assert "compiling bare" in sys.stderr.getvalue()
    assert "3 points of [a].toml" in sys.stderr.getvalue()


def test_a_dry_run_shows_the_design_and_runs_nothing(folder):
    path = spec_of(folder, "[grid]\ndefsym.ROUNDS = { from = 1, to = 40, step = 1 }")
    text = run(path, "--dry-run", "--out", folder / "x.parquet").stdout
    assert "40 points, the first 12" in text
    assert len(re.findall(r"^  [0-9a-f]{16}  +\d+$", text, re.MULTILINE)) == 12
    assert not (folder / "x.parquet").exists()


def test_the_end_is_a_table_csv_or_json(folder):
    path, out = spec_of(folder, SMALL), folder / "x.parquet"
    done = run(path, "--out", out, "--jobs", 1, "--csv", folder / "x.csv")
    assert re.search(r"instructions +24 +44 +64 +3$", done.stdout, re.MULTILINE)
    assert re.search(r"ok +3$", done.stdout, re.MULTILINE)
    assert "0 of 3 points\n3 of 3 points\n" in done.stderr
    lines = (folder / "x.csv").read_text().splitlines()
    assert lines[0] == "point,defsym.ROUNDS,status,error,instructions,mem64(total),perf.nmis"
    assert sorted(line.split(",", 1)[1] for line in lines[1:]) == [
        "10,ok,,24,10,", "20,ok,,44,20,", "30,ok,,64,30,",
    ]  # fmt: skip
    assert run("--show", out, "--csv", "-").stdout.splitlines() == lines
    assert json.loads(run("--show", out, "--json").stdout) == {
        "schema": 1, "out": str(out), "points": 3, "rows": 3, "ok": 3, "failed": 0, "ran": 0,
    }  # fmt: skip
    assert [table.title for table in summary(found(out))] == ["", "Measured"]


def test_results_are_named_as_the_spec_if_not_said(folder, monkeypatch):
    monkeypatch.chdir(folder)
    run(spec_of(folder, "[grid]\ndefsym.ROUNDS = [2]"), "--jobs", 1)
    assert (folder / "spec.parquet").exists()


def test_another_spec_does_not_go_on(folder):
    out = folder / "x.parquet"
    run(spec_of(folder, SMALL), "--out", out, "--jobs", 1)
    text = run(spec_of(folder, SMALL.replace("30", "40")), "--out", out, status=2).output
    assert "is of another sweep: grid defsym ROUNDS was [10, 20, 30], and is [10, 20, 40]" in text
    (folder / "guest.s").write_text(GUEST + "# changed\n")
    assert "is of another sweep: program was 'guest.s " in run(
        spec_of(folder, SMALL), "--out", out, status=2
    ).output


@pytest.mark.parametrize(("args", "message"), [
    ([], "either SPEC or --show OUT"),
    (["spec.toml", "--show", "x.parquet"], "either SPEC or --show OUT"),
    (["no.toml"], "cannot read no.toml: No such file"),
    (["spec.toml", "--jobs", "0"], "jobs: 0 is no number of processes"),
    (["spec.toml", "--jobs", "two"], "'two' is not a valid integer"),
    (["spec.toml", "--jobs", "2", "--dask", "127.0.0.1:1"], "two ways to run a sweep"),
    (["spec.toml", "--dask", "nowhere"], "dask: 'nowhere' is no address of a scheduler"),
    (["spec.toml", "--out", "no/x.parquet"], "cannot write 'no/x.parquet'"),
    (["spec.toml", "--out", "guest.s"], "guest.s is a file"),
    (["spec.toml", "--csv", "no/x.csv"], "cannot write"),
    (["spec.toml", "--csv", "-", "--json"], "both write to standard output"),
    (["--show", "no"], "no results of a sweep are there"),
])  # fmt: skip
def test_bad_input_is_a_sentence(folder, monkeypatch, args, message):
    monkeypatch.chdir(folder)
    spec_of(folder, SMALL)
    text = run(*args, status=2).output
    assert message in text
    assert sorted(each.name for each in folder.iterdir()) == ["guest.s", "spec.toml"]


def test_extras_are_named_where_they_are_missing(folder, monkeypatch):
    path = spec_of(folder, SMALL)
    monkeypatch.setitem(sys.modules, "distributed", None)
    text = run(path, "--dask", "127.0.0.1:1", "--out", folder / "x.parquet", status=2).output
    assert "pip install 'vpmu-emu[dask]'" in text
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert "pip install 'vpmu-emu[sweep]'" in run(path, status=2).output


# --- kills -----------------------------------------------------------------------------------

LONG = """
measure = ["instructions", "cycles", "mem64(total)"]
[random]
points = {points}
seed = 3
defsym.ROUNDS = {{ low = {low}, high = {high} }}
"""


def started(path, out, *more):
    command = [sys.executable, "-m", "vpmu_emu", "sweep", path, "--out", out, *more]
    return subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)  # fmt: skip


def written(out):
    """Rows that the journal of a sweep has."""
    with contextlib.suppress(FileNotFoundError):
        return max(0, Path(f"{out}.journal").read_bytes().count(b"\n") - 1)
    return 0


def wait_for(out, rows, process, seconds=120):
    deadline = time.monotonic() + seconds
    while written(out) < rows and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert process.poll() is None, process.stdout.read()


def children(process):
    return [int(n) for n in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def survives(folder, points, rounds):
    """A driver is killed, then a worker, then Ctrl-C comes; in the end every point is there once."""
    path = spec_of(folder, LONG.format(points=points, low=rounds // 2, high=rounds))
    out = folder / "x.parquet"
    first = started(path, out, "--jobs", 2)
    wait_for(out, points // 6, first)
    first.kill()
    first.wait()
    first.stdout.close()
    there = written(out)
    assert points // 6 <= there < points
    second = started(path, out, "--jobs", 2)
    wait_for(out, there + points // 6, second)
    os.kill(children(second)[0], signal.SIGKILL)
    wait_for(out, there + points // 3, second)
    second.send_signal(signal.SIGINT)
    text = second.communicate(timeout=60)[0]
    assert second.returncode == 130, text
    assert text.endswith("vpmu: interrupted\n")
    assert "Traceback" not in text
    assert there + points // 3 <= len(pq.read_table(out)) < points
    third = started(path, out)
    text = third.communicate(timeout=300)[0]
    assert third.returncode == 0, text
    assert [each.name for each in folder.iterdir() if each.name.startswith("x.")] == ["x.parquet"]
    rows = pq.read_table(out).to_pylist()
    assert [row["point"] for row in rows] == sorted(point.id for point in read_spec(path).points())
    assert {row["status"] for row in rows} == {"ok"}
    assert all(row["mem64(total)"] == row["defsym.ROUNDS"] for row in rows)
    return path, out


def test_a_sweep_survives_kills(folder):
    survives(folder, 18, 2_000_000)


@pytest.mark.laws
def test_a_sweep_of_200_points_survives_kills_and_is_the_same_as_without(folder):
    path, out = survives(folder, 200, 3_000_000)
    done = sweep(path, folder / "undisturbed.parquet")
    assert done.ran == 200
    assert (folder / "undisturbed.parquet").read_bytes() == out.read_bytes()


def test_two_drivers_on_one_output_are_refused(folder):
    path = spec_of(folder, LONG.format(points=4, low=9_000_000, high=9_999_999))
    out = folder / "x.parquet"
    first = started(path, out, "--jobs", 1)
    wait_for(out, 1, first)
    with pytest.raises(VpmuError, match="another sweep is writing to"):
        sweep(path, out, jobs=1)
    first.terminate()
    first.communicate(timeout=60)
    assert len(found(out).rows) >= 1
