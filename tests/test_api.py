"""The Python interface: what is public, what it gives, and that errors are values of ours."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

import vpmu_emu
from tests.conftest import ROOT
from vpmu_emu._jit import COMPILES
from vpmu_emu.asm import write_elf
from vpmu_emu.cli import main

pytestmark = pytest.mark.uncompiled

LESSON = ROOT / "guests" / "lessons" / "01_count.s"


def test_all_is_what_there_is():
    assert sorted(vpmu_emu.__all__) == vpmu_emu.__all__ or set(dir(vpmu_emu)) == set(vpmu_emu.__all__)
    for name in vpmu_emu.__all__:
        assert getattr(vpmu_emu, name) is not None, name
    with pytest.raises(AttributeError, match="no attribute 'sesion'"):
        _ = vpmu_emu.sesion


def test_every_public_name_is_explained():
    for name in vpmu_emu.__all__:
        if name != "__version__":
            assert (getattr(vpmu_emu, name).__doc__ or "").strip(), name


@pytest.mark.parametrize("mode", ["bare", "emulated", "passthrough"])
def test_run_a_lesson(mode):
    result = vpmu_emu.run(str(LESSON), vpmu=mode, cpu="spr")
    assert result.to_json()["exit_code"] == 0
    assert result.counters["pmc1"] == 100
    assert result.exits.get("MSR_WRITE", 0) == {"bare": 0, "emulated": 7, "passthrough": 4}[mode]
    assert result.serial == ""


def test_runs_are_equal_byte_for_byte():
    program = vpmu_emu.assemble_file(LESSON)
    first, second = (vpmu_emu.run(program, vpmu="passthrough") for _ in range(2))
    assert first.record == second.record


def test_errors_are_ours():
    with pytest.raises(vpmu_emu.AssemblyError) as assembly:
        vpmu_emu.assemble("movv eax, 1\n foo bar\n", "x.s")
    assert len(assembly.value.diagnostics) == 2
    with pytest.raises(vpmu_emu.ConfigError) as config:
        vpmu_emu.run(LESSON, vpmu="emulatd")
    assert config.value.key == "vpmu"
    assert "emulated" in config.value.allowed
    with pytest.raises(vpmu_emu.LoadError):
        vpmu_emu.run("no-such.s")


def test_session_watches():
    session = vpmu_emu.Session(LESSON, vpmu="emulated")
    session.watch_msr("IA32_PERF_GLOBAL_CTRL", write=True)
    stops = [session.cont() for _ in range(2)]
    assert [stop.accesses[0].value for stop in stops] == [0, 0x1_0000_0007]
    assert stops[1].accesses[0].old == 0


FORTY_RUNS = """
import re, sys
from pathlib import Path
import vpmu_emu
for k in range(40):
    assert vpmu_emu.run(sys.argv[1], vpmu=sys.argv[2], ram=64).to_json()["exit_code"] == 0
    if k in (4, 39):
        # not getrusage(): its peak is also that of the process that started this one
        peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
        print(int(peak[1]) // 1024)
"""
TOUCHES = """
_start: mov edi, 0x200000
1:      mov [rdi], rdi
        add edi, 4096
        cmp edi, 0x3f00000
        jb 1b
        xor eax, eax
        out 0xf4, al
"""


@pytest.mark.skipif(not COMPILES, reason="takes long uncompiled")
@pytest.mark.parametrize("mode", ["bare", "emulated", "passthrough"])
def test_memory_of_a_run_goes_with_its_last_reference(mode, tmp_path):
    """Not with the collector of cycles, which comes when it likes; and loaded code is small."""
    path = tmp_path / "touches.elf"
    path.write_bytes(write_elf(vpmu_emu.assemble(TOUCHES, "touches.s")))
    command = [sys.executable, "-c", FORTY_RUNS, str(path), mode]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    five, forty = map(int, done.stdout.split())
    assert forty < five + 32  # less than the memory of one run
    assert forty < 200


def test_the_page_is_true(monkeypatch):
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    test = doctest.DocTestParser().get_doctest(page.replace("```", ""), {}, "python.md", "python.md", 0)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    said: list[str] = []
    found = doctest.DocTestRunner(optionflags=flags, verbose=False).run(test, out=said.append)
    assert found.attempted > 25
    assert not found.failed, "".join(said)
    for name in vpmu_emu.__all__:
        if name[0].islower() and name != "assemble_file":
            assert f"vpmu.{name}" in page, name


def test_results_are_equal_if_the_runs_were():
    program = vpmu_emu.assemble_file(LESSON)
    first = vpmu_emu.run(program, ram=2)
    traced = vpmu_emu.run(program, ram=2, trace=True)
    assert first == traced
    assert hash(first) == hash(traced)
    assert first != vpmu_emu.run(program, ram=2, cpu="skx")
    assert first != vpmu_emu.run(program, ram=4)
    assert first != vpmu_emu.run(vpmu_emu.assemble("hlt"), ram=2)
    assert first != "a run"
    # What only memory has is seen, too.
    stores = [f"mov byte ptr [0x8000], {k}\n xor eax, eax\n out 0xf4, al" for k in (1, 2)]
    one, two = (vpmu_emu.run(vpmu_emu.assemble(text), ram=2) for text in stores)
    assert one != two


def test_a_result_says_what_it_is_in_a_line_and_in_tables():
    result = vpmu_emu.run(vpmu_emu.assemble("mov ecx, 0x999\n rdmsr", "<b>&\x1b[31m.s"), ram=2)
    assert "\n" not in repr(result)
    assert len(repr(result)) < 200
    assert (result.stop, result.exit_code) == ("triple-fault", None)
    assert result.cycles == result.to_json()["cycles"]
    assert result.registers["rcx"] == 0x999
    assert "why: rdmsr 0x999" in str(result)
    shown = result._repr_html_()
    assert "&lt;b&gt;&amp;" in shown
    assert "<b>" not in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize(("call", "said"), [
    (lambda: vpmu_emu.run(LESSON, cpus="spr"), "cpus: no such option; did you mean cpu?"),
    (lambda: vpmu_emu.trace(LESSON, modes="bare"), "modes: no such option"),
    (lambda: vpmu_emu.Session(LESSON, max_insn=3), "did you mean max_insns?"),
    (lambda: vpmu_emu.System(None, rams=3), "did you mean ram?"),
    (lambda: vpmu_emu.explain("wrmsr", 0x38F, 3, filters="x"), "did you mean filter?"),
    (lambda: vpmu_emu.explain("wrmsrr", 0x38F), "did you mean wrmsr?"),
    (lambda: vpmu_emu.explain("wrmsr"), "what: wrmsr of which register?"),
    (lambda: vpmu_emu.explain("wrmsr", 1.5), "what: 1.5 is neither a name nor a number"),
    (lambda: vpmu_emu.explain("wrmsr", 0x38F, "zwei"), "value: 'zwei' is not a number"),
    (lambda: vpmu_emu.explain("wrmsr", 0x38F, 1 << 64), "value: '0x10000000000000000' is not a number"),
    (lambda: vpmu_emu.explain("rdmsr", 0x38F, cpl=1), "cpl: 1 is no ring of a guest"),
    (lambda: vpmu_emu.explain("switch", 3, vpmu="mediated"), "a switch is no access"),
    (lambda: vpmu_emu.explain("rdmsr", 0x38F, msrs={"IA32_PMC0": None}), "msrs: None is not a number"),
    (lambda: vpmu_emu.check(), "there is nothing to check"),
    (lambda: vpmu_emu.check(LESSON, inject=["filter-ignore"]), "did you mean filter-ignored?"),
    (lambda: vpmu_emu.check("no-such.s"), "no such file"),
    (lambda: vpmu_emu.trace(LESSON, ram=2).only("vm_exits"), "did you mean vm_exit?"),
])  # fmt: skip
def test_what_cannot_be_asked_is_refused_with_a_hint(call, said):
    with pytest.raises(vpmu_emu.VpmuError) as error:
        call()
    assert said in str(error.value)


def test_a_check_is_true_if_all_hold(tmp_path):
    path = tmp_path / "g.s"
    path.write_text("#: modes bare\n#: expect all: rax == 5\n_start: mov eax, 5\n out 0xf4, al\n")
    broken = tmp_path / "b.s"
    broken.write_text("#: expect all: rax == 5\n_start: movv eax, 5\n")
    assert vpmu_emu.check(path)
    assert vpmu_emu.check(str(path), perturb=True).ok
    both = vpmu_emu.check(path, broken)
    assert not both
    assert both.broken
    assert [report.ok for report in both.files] == [True, False]
    assert "unknown" in str(both) or "movv" in str(both)
    assert "<table>" in both._repr_html_()


def test_a_trace_is_a_sequence_of_events(tmp_path):
    trace = vpmu_emu.trace(LESSON, vpmu="emulated", ram=2)
    assert len(trace) == len(trace.result.events()) == sum(trace.kinds.values())
    exits = trace.only("vm_exit")
    assert len(exits) == sum(trace.result.exits.values())
    assert all(event.kind == "vm_exit" for event in exits)
    assert exits[0].text.startswith("kvm_exit: reason ")
    assert trace.to_dicts()[3]["cycle"] == trace[3].cycle
    assert "events" in repr(trace)
    assert "<table>" in trace._repr_html_()
    trace.save(str(tmp_path / "t.txt"))
    written = (tmp_path / "t.txt").read_text().splitlines()
    assert written[0] == "cpus=1"
    assert sum(" kvm_exit: " in line for line in written) == len(exits)
    assert len(written) - 1 == len(trace)
    vpmu_emu.trace(LESSON, vpmu="emulated", ram=2, trace=str(tmp_path / "u.txt"))
    assert (tmp_path / "u.txt").read_text().splitlines() == written


def test_a_difference_is_what_the_command_prints():
    row = str(ROOT / "guests" / "divergences" / "rdpmc-absent.s")
    found = vpmu_emu.diff(row)
    said = CliRunner().invoke(main, ["diff", row])
    assert (str(found) + "\n", 1) == (said.output, said.exit_code)
    assert json.loads(CliRunner().invoke(main, ["diff", row, "--json"]).output) == found.to_json()
    assert vpmu_emu.diff(vpmu_emu.assemble_file(row), vpmu=("bare", "emulated")) == found
    same = vpmu_emu.diff(vpmu_emu.assemble("nop\n hlt"))
    assert (same.differs, same.at, same.rows) == (False, None, ())
    refused = {"names 1": {"vpmu": "bare"}, "no option is named": {"cores": 2}, "3 ticks": {"hz": 3}}
    for why, asked in refused.items():
        with pytest.raises(vpmu_emu.ConfigError, match=why):
            vpmu_emu.diff(row, **asked)
