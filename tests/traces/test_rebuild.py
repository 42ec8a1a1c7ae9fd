"""Traces of real tools, written by hand from their layout, give the PMUs that they set; and so do ours."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from tests.conftest import ROOT
from vpmu_emu.asm import assemble_file
from vpmu_emu.cli import main
from vpmu_emu.system import System
from vpmu_emu.traces.files import recorder, write_trace
from vpmu_emu.traces.parse import parse
from vpmu_emu.traces.rebuild import rebuild

REAL = ROOT / "tests" / "traces" / "real"
FIRST, SECOND = "vcpu0 of CPU 0/KVM-4242", "vcpu1 of CPU 1/KVM-4243"


@pytest.fixture(scope="module")
def found():
    return rebuild(parse((REAL / "trace_cmd.txt").read_text().splitlines()))


def registers(found, owner):
    return {index: register.value for index, register in found.pmus[owner].registers.items()}


def test_selectors_counters_and_enables_of_two_vcpus(found):
    assert registers(found, FIRST) == {
        0x186: 0x5300C0, 0xC1: 0xFFFF_FFFF_FF9C, 0x38F: 1, 0x38E: 0,
    }  # fmt: skip
    assert list(found.pmus[FIRST].counters()) == [
        ("pmc0", 0xFFFF_FFFF_FF9C, "INST_RETIRED.ANY_P usr os int en", True)
    ]
    # The write that was #GP has changed nothing.
    assert registers(found, SECOND) == {0x187: 0x4300C4, 0x38D: 0xB3, 0x38F: 0x3_0000_0002}
    assert list(found.pmus[SECOND].counters()) == [
        ("pmc1", None, "BR_INST_RETIRED.ALL_BRANCHES usr os en", True),
        ("fixed0", None, "os usr", True),
        ("fixed1", None, "os usr int", True),
    ]
    assert registers(found, "cpu1") == {0x38F: 0x7_0000_000F, 0x38E: 1 << 32, 0x30A: 0x7F_0000_1234}


def test_what_a_gap_makes_uncertain(found):
    """40 events of CPU 3 are missing, where vCPU 1 was; vCPU 0 may have been there meanwhile."""
    assert [(lost.number, lost.cpu, lost.count) for lost in found.lost] == [(18, 3, 40)]
    assert {index: r.doubt for index, r in found.pmus[SECOND].registers.items()} == {
        0x187: True, 0x38D: False, 0x38F: False,
    }  # fmt: skip
    assert found.pmus[FIRST].registers[0x186].doubt
    assert not found.pmus[FIRST].registers[0x38E].doubt
    assert not found.pmus["cpu1"].registers[0x38F].doubt


def test_garbage_is_named_by_line(found):
    assert [(p.number, p.expected.split(":")[0]) for p in found.problems] == [
        (10, "`TASK-PID [CPU] SECONDS"), (34, "kvm_msr"), (35, "kvm_msr"), (37, "`TASK-PID [CPU] SECONDS"),
    ]  # fmt: skip


def test_perf_script():
    found = rebuild(parse((REAL / "perf_script.txt").read_text().splitlines()))
    assert registers(found, FIRST) == {0x38D: 0xB}
    assert registers(found, "cpu0") == {0x187: 0x5301B7}
    assert registers(found, "cpu3") == {0xC1: 0x2A}
    assert (found.lost[0].cpu, found.lost[0].count) == (None, 17)
    assert [p.number for p in found.problems] == [9]


@pytest.mark.parametrize("mode", ["bare", "emulated", "passthrough"])
@pytest.mark.parametrize("ending", ["txt", "trace"])
def test_our_own_trace_gives_the_registers_of_the_run(mode, ending, tmp_path):
    program = assemble_file(ROOT / "guests" / "lessons" / "06_sampling.s")
    machine = System(program, vpmu=mode, trace=True)
    kept = recorder(machine, tmp_path / f"t.{ending}")
    machine.run()
    write_trace(kept, tmp_path / f"t.{ending}")
    found = rebuild(parse((tmp_path / f"t.{ending}").read_text().splitlines()))
    assert found.problems == []
    pmu = machine.guest_pmu()
    own = registers(found, "cpu0" if mode == "bare" else "vcpu0 of vmm-1")
    assert own[0x186] == pmu["eventsel"][0]
    assert own[0x38F] == pmu["global_ctrl"]
    assert own[0x38E] == pmu["global_status"]


def test_the_command():
    path = REAL / "trace_cmd.txt"
    result = CliRunner().invoke(main, ["trace", "decode", str(path)])
    assert result.exit_code == 1
    said = result.output
    assert f"{path}: line 10: expected `TASK-PID [CPU] SECONDS: EVENT: …`, found 'this is no line" in said
    assert f"{path}: line 18: 40 events on CPU 3 are missing" in said
    assert f"{path}: lines that cannot be read: 4" in said
    decoded = "wrmsr IA32_PERFEVTSEL0 = 0x5300c0 (INST_RETIRED.ANY_P usr os int en), exited"
    assert f"9001.000102 {FIRST}: {decoded}" in said
    assert said.count("#GP, exited") == 1
    as_json = CliRunner().invoke(main, ["trace", "decode", "--json", str(path)])
    values = json.loads(as_json.stdout)
    counter = values["pmus"][SECOND]["counters"]["fixed1"]
    assert counter == {"value": None, "counts": "os usr int", "enabled": True}
    assert values["pmus"][FIRST]["registers"]["IA32_PMC0"]["value"] == 0xFFFF_FFFF_FF9C
    assert [problem["number"] for problem in values["problems"]] == [10, 34, 35, 37]
    quiet = CliRunner().invoke(main, ["trace", "decode", "--quiet", "-"], input=path.read_text())
    assert "9001.000102" not in quiet.output
    assert "PMU of vcpu1 of CPU 1/KVM-4243" in quiet.output


@pytest.mark.parametrize(
    ("words", "text", "message"),
    [
        (["decode", "-"], "no trace at all\n", "has no line of a trace"),
        (["stat", "-"], "", "has no line of a trace"),
        (["decode", "/no/such/file"], "", "No such file"),
        (["stat", "/"], "", "Is a directory"),
        (["decode", "--cpu", "sprr", "-"], "", "did you mean spr"),
        (["decoed", "-"], "", "decode"),
    ],
)
def test_bad_input_is_one_sentence(words, text, message):
    result = CliRunner().invoke(main, ["trace", *words], input=text)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
