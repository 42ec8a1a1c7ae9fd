"""Any guest is timed, and what cannot be compared says why."""

from __future__ import annotations

import json
import platform
import sys

import pytest
from click.testing import CliRunner

from vpmu_emu import bench, bench_guest
from vpmu_emu.asm import assemble
from vpmu_emu.bench_guest import Spread, not_native, tables
from vpmu_emu.cli import main
from vpmu_emu.options import Options

LOOP = "_start: mov ecx, 500\n1: dec ecx\n jnz 1b\n xor eax, eax\n out 0xf4, al\n"
RDPMC = "_start: xor ecx, ecx\n rdpmc\n xor eax, eax\n out 0xf4, al\n"
X86 = platform.machine() in ("x86_64", "AMD64")


@pytest.fixture(autouse=True)
def few_accesses(monkeypatch):
    monkeypatch.setattr(bench_guest, "LOOPS", 50)


def timed(text, modes=("bare",), times=2, **options):
    return bench_guest.bench_guest(assemble(text, "g.s"), Options.of({"ram": 2, **options}), modes, times)


def other(found, name):
    return next(row for row in found["others"] if row["runner"] == name)


def test_each_mode_has_its_run_and_its_accesses():
    found = timed(LOOP, ("bare", "none", "emulated"))
    assert found["rounds"] == 2
    for mode, told in found["modes"].items():
        assert told["instructions"] == 1003
        assert told["exit_code"] == 0
        for spread in (told["mips"], told["seconds"]):
            assert 0 < spread["low"] <= spread["median"] <= spread["high"]
        # Where there is no PMU, what KVM does not drop faults, and has no time.
        faults = {"RDPMC", "WRMSR IA32_PERF_GLOBAL_CTRL"} if mode == "none" else set()
        assert set(told["access_ns"]) == set(bench_guest.ACCESSES) - faults
    assert found["modes"]["bare"]["exits"] == 0
    assert found["modes"]["emulated"]["exits"] > 0
    whole, costs = tables(found)
    assert [row[0] for row in whole.rows] == ["bare", "none", "emulated", "unicorn", "native"]
    assert costs.rows[1][2] is None


def test_unicorn_is_beside_it_if_it_does_the_same_work(require_oracle, monkeypatch):
    require_oracle("import:unicorn")
    assert other(timed(LOOP), "unicorn")["mips"]["median"] > 0
    stops = other(timed(RDPMC), "unicorn")
    assert stops["mips"] is None
    assert "stops at 0x100002 (`rdpmc`)" in stops["note"]
    # It has no counters: what it takes from them is another number, and the work is another.
    other_work = "_start: mov ecx, 0x38f\n rdmsr\n mov ebx, eax\n xor eax, eax\n out 0xf4, al\n"
    assert other(timed(other_work), "unicorn")["note"] == "does other work: ends with another rbx"
    other_end = "_start: mov ecx, 0x38f\n rdmsr\n out 0xf4, al\n"
    assert other(timed(other_end), "unicorn")["note"].startswith("does other work: ends with exit code")
    assert other(timed("_start: cli\n hlt\n"), "unicorn")["note"] == "ends otherwise than by port 0xf4"
    monkeypatch.setattr(bench_guest, "UNICORN_SECONDS", 0.3)
    hangs = timed("_start: jmp _start\n", max_insns=1000)
    assert other(hangs, "unicorn")["note"].startswith("not done after ")


def test_what_is_not_installed_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "unicorn", None)
    assert other(timed(LOOP), "unicorn")["note"] == "not installed (extra `oracle`)"


@pytest.mark.skipif(not X86, reason="needs an x86 processor")
def test_the_processor_runs_nothing_but_our_own():
    text = bench.source("kut_loop")
    assert not_native(assemble(text, "kut_loop.s")) == ""
    changed = assemble(text + "# another\n", "kut_loop.s")
    assert "is for the kernel's ring" in not_native(changed)
    assert not_native(assemble(LOOP, "g.s")) == "not run: `out 0xf4, al` (g.s:5) is for the kernel's ring"
    assert "a stranger's machine code" in not_native(assemble("_start: jmp _start\n", "g.s"))


def test_a_guest_that_ends_otherwise_says_why(monkeypatch):
    monkeypatch.setitem(sys.modules, "unicorn", None)  # which would go on for a while
    found = timed("_start: mov ecx, 0x999\n rdmsr\n", ("bare",))
    assert tables(found)[0].rows[0][-1] == "triple-fault: rdmsr 0x999: there is no such MSR: #GP(0)"


def test_rounds_end_after_a_while(monkeypatch):
    monkeypatch.setattr(bench_guest, "PATIENCE", 0.0)
    assert timed(LOOP, times=50)["rounds"] == 2


def test_the_spread_is_of_all_rounds():
    assert Spread.of([3.0, 1.0, 200.0]) == Spread(3.0, 1.0, 200.0)
    assert str(Spread.of([3.0, 1.0, 200.0])) == "3 (1 to 200)"


def test_the_command(tmp_path):
    path = tmp_path / "g.s"
    path.write_text(LOOP)
    args = ["bench", str(path), "--modes", "bare", "--times", "1", "--ram", "2"]
    done = CliRunner().invoke(main, [*args, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["modes"]["bare"]["instructions"] == 1003
    assert "M instr/s" in CliRunner().invoke(main, args).stdout
    for wrong, said in (
        (["--modes", "bare"], "--modes is of PROG, and there is none"),
        (["--ram", "2"], "--ram is of PROG, and there is none"),
        ([str(path), "--modes", "bear"], "did you mean bare"),
        ([str(path), "--modes", "bare", "--hz", "100"], "there is no hypervisor"),
        ([str(tmp_path / "x.s")], "no such file"),
    ):
        refused = CliRunner().invoke(main, ["bench", *wrong])
        assert refused.exit_code == 2
        assert said in refused.output, refused.output


def test_a_run_says_its_speed_and_not_where_results_are_compared(tmp_path):
    path = tmp_path / "g.s"
    path.write_text(LOOP)
    done = CliRunner().invoke(main, ["run", str(path), "--ram", "2"])
    assert "million a second" in done.stderr
    assert "1,003 instructions in " in done.stderr
    assert "a second" not in done.stdout
    assert "a second" not in CliRunner().invoke(main, ["run", str(path), "--ram", "2", "--json"]).stderr
