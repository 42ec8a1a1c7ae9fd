"""Rows on the disk: whatever ends the process, they are there, and nobody else's are touched."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import zlib

import attrs
import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT
from vpmu_emu.errors import ConfigError, VpmuError
from vpmu_emu.lab import results
from vpmu_emu.lab.results import Head, Results, packed, place_of, read_results, table_of

HEAD = Head("1.0", "c0de", "dd", {"program": "a.s 1", "grid": {"ram": [2, 4]}}, ("ram",), ("cycles",))


def row(n, **more):
    return {"point": f"{n:016x}", "ram": n, "status": "ok", "error": None, "cycles": n * n, **more}


def journal(path):
    return path.with_name(path.name + ".journal")


def write(path, numbers, head=HEAD):
    with Results(path, head) as found:
        for n in numbers:
            found.add(row(n))


def test_rows_are_in_the_file_at_the_end_and_the_journal_has_gone(tmp_path):
    path = tmp_path / "x.parquet"
    write(path, [2, 1])
    assert [each.name for each in tmp_path.iterdir()] == ["x.parquet"]
    table = pq.read_table(path)
    assert table.column_names == ["point", "ram", "status", "error", "cycles"]
    assert table.to_pylist() == [row(1), row(2)]
    assert read_results(path) == (path, HEAD_AS_READ, [row(1), row(2)])


HEAD_AS_READ = attrs.evolve(HEAD, columns=["ram"], measures=["cycles"])


def test_rows_are_added_to_those_that_are_there(tmp_path):
    path = tmp_path / "x.parquet"
    write(path, [3, 1])
    write(path, [2, 4])
    assert read_results(path)[2] == [row(n) for n in (1, 2, 3, 4)]
    assert len(pq.read_table(path)) == 4


def test_the_file_is_the_same_whatever_the_order_and_the_number_of_times(tmp_path):
    numbers = list(range(40))
    write(tmp_path / "a.parquet", numbers)
    random.Random(1).shuffle(numbers)
    for k in range(0, 40, 10):
        write(tmp_path / "b.parquet", numbers[k : k + 10])
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_a_folder_holds_one_file(tmp_path):
    assert place_of(tmp_path / "new") == tmp_path / "new" / "points.parquet"
    assert (tmp_path / "new").is_dir()
    assert place_of(tmp_path / "new") == tmp_path / "new" / "points.parquet"
    write(place_of(tmp_path / "new"), [1])
    assert read_results(tmp_path / "new")[2] == [row(1)]


# --- whatever ends the process ---------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from tests.lab.test_results import HEAD, row
from vpmu_emu.lab.results import Results
results = Results(Path(sys.argv[1]), HEAD)
for n in map(int, sys.argv[2:]):
    results.add(row(n))
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(path, *numbers):
    """What a process leaves that is killed when it has written these rows."""
    found = Results(path, HEAD)
    for n in numbers:
        found.add(row(n))
    os.close(found._file)


def really_killed(path, *numbers):
    command = [sys.executable, "-c", KILLED, str(path), *map(str, numbers)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -9


def test_every_row_survives_a_kill(tmp_path):
    path = tmp_path / "x.parquet"
    write(path, [5])
    really_killed(path, 1, 2, 3)
    assert read_results(path)[2] == [row(n) for n in (1, 2, 3, 5)]
    write(path, [4])
    assert read_results(path)[2] == [row(n) for n in (1, 2, 3, 4, 5)]
    assert [each.name for each in tmp_path.iterdir()] == ["x.parquet"]


def test_a_kill_at_any_byte_costs_at_most_the_row_that_was_being_written(tmp_path):
    """The journal is cut at every byte: what was whole is kept, and the rest is written again."""
    path = tmp_path / "x.parquet"
    killed(path, 1, 2)
    data = journal(path).read_bytes()
    ends = [n + 1 for n, byte in enumerate(data) if byte == 10]
    assert len(ends) == 3, "the head and two rows"
    for cut in range(0, len(data) + 1, 5):
        journal(path).write_bytes(data[:cut])
        with Results(path, HEAD) as found:
            whole = sum(end <= cut for end in ends[1:])
            assert sorted(found.rows) == [f"{n:016x}" for n in (1, 2)[:whole]]
            found.add(row(3))
            assert read_results(path)[2][-1] == row(3)
        assert row(3) in read_results(path)[2]
        path.unlink()


def test_a_kill_between_file_and_journal_counts_no_row_twice(tmp_path):
    path = tmp_path / "x.parquet"
    killed(path, 1, 2)
    data = journal(path).read_bytes()
    write(path, [3])
    journal(path).write_bytes(data)
    write(path, [])
    assert read_results(path)[2] == [row(n) for n in (1, 2, 3)]


def test_a_row_that_was_run_again_counts_once_and_as_it_was_last(tmp_path):
    path = tmp_path / "x.parquet"
    with Results(path, HEAD) as found:
        found.add(row(1, status="failed"))
    with Results(path, HEAD) as found:
        found.add(row(1))
    assert read_results(path)[2] == [row(1)]


def test_a_damaged_journal_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "x.parquet"
    killed(path, 1, 2, 3)
    data = bytearray(journal(path).read_bytes())
    data[data.index(b"\n") + 20] ^= 1
    journal(path).write_bytes(data)
    with pytest.raises(ConfigError, match="is damaged: the checksum of line 2 is wrong"):
        Results(path, HEAD)
    assert journal(path).read_bytes() == data


def test_what_cannot_be_written_at_the_end_is_in_the_journal(tmp_path):
    path = tmp_path / "x.parquet"
    found = Results(path, HEAD)
    found.add(row(1))
    path.mkdir()
    with pytest.raises(VpmuError, match=r"cannot write .*; 1 points are kept, and the same command goes"):
        found.__exit__(None)
    path.rmdir()
    write(path, [2])
    assert read_results(path)[2] == [row(1), row(2)]


def test_ctrl_c_between_journal_and_memory_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "x.parquet"
    real = os.fsync

    def interrupted(file):
        real(file)
        raise KeyboardInterrupt

    def two():
        with Results(path, HEAD) as found:
            found.add(row(1))
            monkeypatch.setattr(os, "fsync", interrupted)
            try:
                found.add(row(2))
            finally:
                monkeypatch.undo()

    with pytest.raises(KeyboardInterrupt):
        two()
    assert read_results(path)[2] == [row(1), row(2)]
    assert not journal(path).exists()


FULL = """
import resource, signal, sys
from pathlib import Path
from tests.lab.test_results import HEAD, row
from vpmu_emu.errors import VpmuError
from vpmu_emu.lab.results import Results
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    with Results(Path(sys.argv[1]), HEAD) as results:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
        for n in range(1000):
            results.add(row(n))
except VpmuError as error:
    print(len(results.rows), error)
"""


def test_a_full_disk_loses_nothing(tmp_path):
    path = tmp_path / "x.parquet"
    command = [sys.executable, "-c", FULL, str(path), "2000"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    count, _, text = done.stdout.partition(" ")
    assert text.startswith(f"cannot write {path}.journal: ")
    assert f"; {count} points are kept, and the same command goes on" in text
    assert len(text.splitlines()) == 1
    assert 3 < int(count) < 100
    assert len(read_results(path)[2]) == int(count)
    write(path, [2000])
    assert len(read_results(path)[2]) == int(count) + 1


# --- what is not ours ---------------------------------------------------------------------


def test_two_cannot_write_to_one_file(tmp_path):
    path = tmp_path / "x.parquet"
    with Results(path, HEAD) as found:
        found.add(row(1))
        with pytest.raises(ConfigError, match=rf"another sweep is writing to {path}$"):
            Results(path, HEAD)
        found.add(row(2))
    assert read_results(path)[2] == [row(1), row(2)]
    write(path, [3])


OTHERS = [
    ({"version": "2.0"}, r"is of vpmu_emu 1.0 \(sources c0de, record dd\), this is vpmu_emu 2.0"),
    ({"code": "beef"}, r"sources c0de.*this is .*sources beef"),
    ({"record": "ee"}, r"record dd.*record ee"),
    ({"spec": {"program": "b.s 1", "grid": {"ram": [2, 4]}}}, "program was 'a.s 1', and is 'b.s 1'"),
    ({"spec": {"program": "a.s 1", "grid": {"ram": [2]}}}, r"grid ram was \[2, 4\], and is \[2\]"),
    ({"spec": {"program": "a.s 1", "grid": {"ram": [2, 4], "cpu": ["spr"]}}}, "grid cpu was None, and is"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), OTHERS, ids=["version", "code", "record", "a", "b", "c"])
@pytest.mark.parametrize("where", ["file", "journal"])
def test_results_of_something_else_are_refused_with_both(tmp_path, change, message, where):
    path = tmp_path / "x.parquet"
    if where == "file":
        write(path, [1])
    else:
        killed(path, 1)
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match=message) as caught:
        Results(path, attrs.evolve(HEAD, **change))
    assert "allowed: another --out" in str(caught.value)
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before


def test_another_format_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.parquet"
    monkeypatch.setattr(results, "FORMAT", 2)
    write(path, [1])
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="has format 2, this version reads 1"):
        Results(path, HEAD)


@pytest.mark.parametrize("data", [b"", b"nothing", b"PAR1" + b"\0" * 50 + b"PAR1"])
def test_a_file_that_is_no_parquet_is_refused(tmp_path, data):
    path = tmp_path / "x.parquet"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="cannot be read"):
        Results(path, HEAD)
    assert path.read_bytes() == data
    assert [each.name for each in tmp_path.iterdir()] == ["x.parquet"]


def test_parquet_of_somebody_else_is_refused(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(table_of([row(1)], HEAD).replace_schema_metadata(None), path)
    with pytest.raises(ConfigError, match="is no result of a sweep"):
        Results(path, HEAD)


def test_a_journal_of_somebody_else_is_refused(tmp_path):
    path = tmp_path / "x.parquet"
    text = json.dumps({"a": 1}).encode()
    journal(path).write_bytes(f"{zlib.crc32(text):08x} ".encode() + text + b"\n")
    with pytest.raises(ConfigError, match="is no result of a sweep"):
        Results(path, HEAD)


def test_places_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        place_of(tmp_path / "file")
    with pytest.raises(VpmuError, match="no such folder"):
        place_of(tmp_path / "no" / "x.parquet")
    with pytest.raises(ConfigError, match="No such file or directory"):
        place_of(tmp_path / "no" / "folder")
    with pytest.raises(ConfigError, match="cannot write"):
        Results(tmp_path / "no" / "x.parquet", HEAD)
    with pytest.raises(ConfigError, match="no results of a sweep are there"):
        read_results(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


# --- columns ---------------------------------------------------------------------


@pytest.mark.parametrize(("values", "kind"), [
    ([1, -2], "int64"), ([1, 1 << 63], "uint64"), ([-1, 1 << 63], "string"), ([1 << 70], "string"),
    ([1, 2.5], "double"), ([True, False], "bool"), ([True, 1], "string"), (["a", 1], "string"),
    ([None, 3], "int64"), ([None], "int64"), ([float("inf")], "double"), (["\udc80"], "string"),
])  # fmt: skip
def test_types_of_columns(tmp_path, values, kind):
    rows = [row(n, cycles=value) for n, value in enumerate(values)]
    assert str(table_of(rows, HEAD).schema.field("cycles").type) == kind
    path = tmp_path / "x.parquet"
    with Results(path, HEAD) as found:
        for each in rows:
            found.add(each)
    once = path.read_bytes()
    write(path, [])
    assert path.read_bytes() == once, "what is read and written again is the same"


def test_without_measures_all_that_rows_have_is_a_column_by_name():
    head = attrs.evolve(HEAD, measures=None)
    rows = [{**row(1), "b.c": 1}, {**row(2), "a": "x"}]
    table = table_of(rows, head)
    assert table.column_names == ["point", "ram", "status", "error", "a", "b.c", "cycles"]
    assert table["b.c"].to_pylist() == [1, None]
    assert packed(rows, head) == packed(reversed(rows), head)


def test_pyarrow_is_an_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(VpmuError, match=r"pyarrow is not installed: pip install 'vpmu-emu\[sweep\]'"):
        read_results(tmp_path)
