"""Compiled code that came with the package is used where it fits, and nowhere else; it never does harm."""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys

import pytest
from llvmlite import binding as llvm

from tests.conftest import ROOT
from vpmu_emu import _jit, build, cli
from vpmu_emu._jit import native, shipped

pytestmark = pytest.mark.uncompiled
NAME, CALLEE = "vpmu_emu.machine.u64:twice_and_one", "vpmu_emu.machine.bits:one_more"
# As numba calls: a status; places for the result and for an exception; arguments.
CALLER_IR = """
declare i32 @one_more(ptr, ptr, i64)
define i32 @twice_and_one(ptr %out, ptr %problem, ptr %record, i64 %x) {
  %twice = shl i64 %x, 1
  %status = call i32 @one_more(ptr %out, ptr %problem, i64 %twice)
  ret i32 %status
}
"""
CALLEE_IR = """
define i32 @one_more(ptr %out, ptr %problem, i64 %x) {
  %more = add i64 %x, 1
  store i64 %more, ptr %out
  ret i32 0
}
"""


def bitcode(text):
    module = llvm.parse_assembly(text)
    module.triple = llvm.get_process_triple()
    return module.as_bitcode()


def functions():
    kinds = ["vpmu_emu.machine.state:ENGINE", "int64"]
    return {
        NAME: shipped.Function("twice_and_one", kinds, "int64", [CALLEE], bitcode(CALLER_IR)),
        CALLEE: shipped.Function("one_more", [], None, [], bitcode(CALLEE_IR)),
    }


@pytest.fixture
def came(tmp_path, monkeypatch):
    """Let bytes be what came with the package."""
    monkeypatch.setattr(shipped, "FILE", tmp_path / "_shipped.bitcode")

    def put(data):
        if data is not None:
            shipped.FILE.write_bytes(data)
        shipped._opened.cache_clear()

    put(None)
    yield put
    shipped._opened.cache_clear()


def called(entry):
    import numpy as np

    from vpmu_emu.machine.state import ENGINE

    return entry(np.zeros((), ENGINE), 20)


def test_what_came_is_finished_and_kept(came, tmp_path):
    came(shipped.pack(functions()))
    path = tmp_path / "twice.code"
    assert called(shipped.load(NAME, path)) == 41
    assert called(native.load(path)) == 41
    assert shipped.why_not() == ""
    assert shipped.has([NAME])
    assert not shipped.has([NAME, "vpmu_emu.machine.u64:another"])
    assert not shipped.has([])
    assert shipped.load("vpmu_emu.machine.u64:another", path) is None


def test_nothing_came(came, tmp_path):
    assert shipped.load(NAME, tmp_path / "twice.code") is None
    assert shipped.why_not() == shipped.NONE_CAME


@pytest.mark.parametrize(
    "what", ["numba", "llvmlite", "platform", "settings", "tables", "sources", "records"]
)
def test_what_was_made_for_something_else_is_not_used(came, tmp_path, monkeypatch, what):
    with monkeypatch.context() as there:
        if what == "sources":
            there.setattr(shipped, "sources", lambda modules: b"other")
        elif what == "records":
            there.setattr(native, "dtype_hash", lambda dtype: "other")
        else:
            other = {**shipped.portable(), what: "other"}
            there.setattr(shipped, "portable", lambda: other)
        data = shipped.pack(functions())
    came(data)
    path = tmp_path / "twice.code"
    assert shipped.load(NAME, path) is None
    assert not shipped.has([NAME])
    assert what in shipped.why_not()
    assert not path.exists()


def test_a_record_that_is_gone(came, monkeypatch):
    data = shipped.pack(functions())
    monkeypatch.setattr(native, "named_dtype", native.named_dtype.__wrapped__)
    monkeypatch.delattr("vpmu_emu.machine.state.ENGINE")
    came(data)
    assert "ENGINE" in shipped.why_not()


def damages():
    data = shipped.pack(functions())
    yield b""
    yield b"\0" * 40
    for size in (1, 31, 32, 33, len(data) // 2, len(data) - 1):
        yield data[:size]
    for at in (0, 33, 100, len(data) // 2, len(data) - 1):
        yield data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    yield data + b"\0"


def test_damage_is_seen(came, tmp_path):
    for data in damages():
        came(data)
        assert shipped.load(NAME, tmp_path / "twice.code") is None
        assert shipped.why_not() == shipped.DAMAGED


def test_what_is_whole_and_wrong_is_left_to_the_compiler(came, tmp_path):
    lacking = functions()
    del lacking[CALLEE]
    nothing = {**functions(), CALLEE: functions()[CALLEE]._replace(bitcode=b"no bitcode")}
    undefined = {**functions(), NAME: functions()[NAME]._replace(needs=[])}
    for wrong in (lacking, nothing, undefined):
        came(shipped.pack(wrong))
        assert shipped.load(NAME, tmp_path / "twice.code") is None


@contextlib.contextmanager
def full_disk():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_folder_where_nothing_can_be_written(came, tmp_path):
    came(shipped.pack(functions()))
    assert called(shipped.load(NAME, tmp_path / "none" / "twice.code")) == 41
    kept = tmp_path / "cache"
    kept.mkdir()
    with full_disk():
        ready = shipped.load(NAME, kept / "twice.code")
    assert called(ready) == 41
    assert list(kept.iterdir()) == []  # not half a file either


# --- modes ----------------------------------------------------------------------------------------


@pytest.fixture
def modes(came, monkeypatch, tmp_path):
    """Three modes, of which the package brought code for two; of one it cannot be finished."""

    class Entry:
        def __init__(self, good):
            self.finish = lambda: good

    monkeypatch.setattr(_jit, "COMPILES", True)
    monkeypatch.setattr(_jit, "functions", {NAME: Entry(True), CALLEE: Entry(False)})
    roots = {"bare": [NAME], "emulated": [NAME, CALLEE], "mediated": ["vpmu_emu.machine.u64:another"]}
    monkeypatch.setattr(build, "load_signatures", lambda: {"roots": roots, "functions": {}})
    monkeypatch.setattr(build, "_mark", lambda mode: tmp_path / mode)
    built = []
    monkeypatch.setattr(build, "build", lambda names, *_: built.append(list(names)))
    came(shipped.pack(functions()))
    return built


def test_only_what_did_not_come_is_compiled(modes, capsys):
    cli.prepare(["bare"])
    assert modes == []
    assert capsys.readouterr().err == (
        "vpmu: generating code of bare (for this processor; once per version and machine)\n"
    )
    assert build.is_built("bare")
    cli.prepare(["bare"])
    assert capsys.readouterr().err == ""
    cli.prepare(["bare", "emulated", "mediated"])
    assert modes == [["mediated", "emulated"]]
    assert capsys.readouterr().err.splitlines()[-1] == (
        "vpmu: compiling mediated, emulated (the compiled code that came with this package lacks it;"
        " once per version and machine)"
    )


def test_python_and_sweeps_compile_no_more_than_the_command(modes):
    build.prepare(["bare"])
    assert modes == []
    assert build.is_built("bare")
    build.prepare(["bare", "mediated"])
    assert modes == [["mediated"]]


def test_a_full_disk_compiles_nothing(modes, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(build, "_mark", lambda mode: tmp_path / "none" / mode)
    cli.prepare(["bare"])
    assert modes == []
    assert "compiling" not in capsys.readouterr().err


def test_a_checkout_says_why_it_compiles(modes, came, capsys):
    shipped.FILE.unlink()
    came(None)
    cli.prepare(["bare"])
    assert modes == [["bare"]]
    assert capsys.readouterr().err == (
        "vpmu: compiling bare (no compiled code came with this package; once per version and machine)\n"
    )


def test_uncompiled_nothing_is_finished(modes, monkeypatch):
    monkeypatch.setattr(_jit, "COMPILES", False)
    assert not build.comes_with_package("bare")


def test_code_is_made_for_modes_that_there_are(tmp_path):
    path = tmp_path / "code"
    command = [sys.executable, "-m", "vpmu_emu.ship", path, "bare, bear"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr == (
        "vpmu: no mode is named 'bear' (allowed: bare, none, emulated, passthrough, mediated)\n"
    )
    assert not path.exists()
