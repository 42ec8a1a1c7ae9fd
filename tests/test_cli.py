"""The command as a user meets it: output, exit status, and one clear message for every mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import jsonschema
import pytest
from click.testing import CliRunner

from tests.conftest import ROOT
from vpmu_emu.cli import main

BROKEN = ".intel_syntax noprefix\n_start: mov eax, 1\n wrmsrr\n mov %rax, 1\n hlt\n"
COUNTED = """
# Counts a loop.
#: modes bare emulated
#: expect all: pmc0 == insns(opened, loop) + 2 * insns(loop, end) + insns(end, close) + 1
#: expect bare: exits.MSR_WRITE == 0
#: expect emulated: exits.MSR_WRITE > 0
        .intel_syntax noprefix
_start: mov ecx, 0x38f; xor eax, eax; xor edx, edx; wrmsr
        mov ecx, 0x186; mov eax, 0x4300c0; xor edx, edx; wrmsr
        mov ecx, 0x38f; mov eax, 1; wrmsr
opened: mov ecx, 2
loop:   nop
        dec ecx
        jnz loop
end:    mov ecx, 0x38f
        xor eax, eax
close:  wrmsr
        out 0xf4, al
"""


def vpmu(*args, stdin=None):
    return CliRunner().invoke(main, [str(a) for a in args], input=stdin)


def lines(result):
    return result.output.splitlines()


@pytest.fixture
def guest(tmp_path):
    def write(text, name="guest.s"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


# --- without running anything ------------------------------------------------------------------


@pytest.mark.uncompiled
def test_help_names_every_command():
    result = vpmu("--help")
    assert result.exit_code == 0
    for name in ("run", "check", "debug", "explain", "bench", "asm", "guests", "info", "build"):
        assert f"\n  {name} " in result.output


@pytest.mark.uncompiled
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["rnu"], "Did you mean 'run'?"),
        (["asm", "--lsting", "-"], "Did you mean '--listing'?"),
        (["asm"], "Missing argument 'PROG'"),
        (["asm", "no-such.s"], "no-such.s: no such file"),
        (["asm", "mixde.s"], "did you mean"),
        (["asm", str(ROOT)], "is a folder"),
        (["check", "no-such"], "no-such: no such file or folder"),
        (["explain", "wrmsr", "IA32_PERF_GLOBAL_CTL"], "IA32_PERF_GLOBAL_CTRL"),
        (["explain", "wrmsr", "0x38f", "zwei"], "'zwei' is not a number"),
        (["explain", "wrmsr", "0x38f", "1" * 30], "does not fit 64 bits"),
        (["build", "--modes", "bear"], "did you mean bare?"),
    ],
)
def test_wrong_usage_is_one_message_and_status_2(args, message):
    result = vpmu(*args)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


@pytest.mark.uncompiled
def test_every_assembly_error_in_one_go(guest):
    path = guest(BROKEN)
    for command in ("asm", "run", "debug", "check"):
        result = vpmu(command, path)
        assert result.exit_code == 2, result.output
        assert f"{path}:3:2:" in result.output
        assert f"{path}:4:6:" in result.output
        assert "did you mean 'wrmsr'?" in result.output


@pytest.mark.uncompiled
def test_binary_input_is_refused(tmp_path):
    path = tmp_path / "x.s"
    path.write_bytes(b"\x7fELF\xff\xfe\x80")
    result = vpmu("asm", path)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


@pytest.mark.uncompiled
def test_asm_reads_standard_input_and_lists():
    result = vpmu("asm", "-", "--listing", stdin="_start: mov eax, 1\n hlt\n")
    assert result.exit_code == 0
    assert "b8 01 00 00 00" in result.output
    found = json.loads(vpmu("asm", "-", "--json", stdin="_start: hlt\n").output)
    assert found["segments"][0]["data"] == "f4"
    assert found["symbols"]["_start"] == found["entry"]


@pytest.mark.uncompiled
@pytest.mark.oracle
def test_asm_writes_an_elf_that_objdump_reads(tmp_path, require_oracle):
    objdump = require_oracle("objdump")
    out = tmp_path / "a.elf"
    assert vpmu("asm", ROOT / "guests/workloads/mixed.s", "-o", out).exit_code == 0
    text = subprocess.run([objdump, "-d", "-Mintel", out], capture_output=True, text=True, check=True)
    assert "<_start>:" in text.stdout
    assert "wrmsr" in text.stdout


@pytest.mark.uncompiled
def test_info_of_a_cpu():
    result = vpmu("info", "--cpu", "skx", "--json")
    assert result.exit_code == 0
    found = json.loads(result.output)
    assert (found["signature"], found["version"], found["gp"], found["fixed"]) == (0x50657, 4, 4, 3)
    assert found["leaf_0a"] == [0x07300404, 0, 0, 0x603]
    events = {event["name"]: event for event in found["events"]}
    assert events["BR_INST_RETIRED.COND"]["code"] == 0x01C4
    assert events["INST_RETIRED.PREC_DIST"]["counters"] == [1]
    assert events["INST_RETIRED.ANY_P"]["fixed"] == 0
    assert "TOPDOWN.SLOTS" not in events
    words = vpmu("info", "--cpu", "spr").output
    for word in ("0x806f8", "TOPDOWN.SLOTS", "0x0400", "fixed3", "0-3", "0-7"):
        assert word in words
    wrong = vpmu("info", "--cpu", "sprr")
    assert wrong.exit_code == 2
    assert "did you mean spr" in wrong.output


@pytest.mark.uncompiled
@pytest.mark.parametrize(("cpu", "event"), [("skx", "COND "), ("icx", "COND_TAKEN ")])
def test_explain_names_the_event_of_the_cpu(cpu, event):
    found = vpmu("explain", "wrmsr", "IA32_PERFEVTSEL0", "0x4301c4", "--vpmu", "bare", "--cpu", cpu)
    assert f"= BR_INST_RETIRED.{event}usr os en" in found.output


@pytest.mark.uncompiled
def test_guests_lists_what_ships():
    result = vpmu("guests", "--json")
    assert result.exit_code == 0
    found = {row["path"].rsplit("/", 1)[1]: row for row in json.loads(result.output)}
    assert found["mixed.s"]["expectations"] > 0
    assert found["mixed.s"]["title"].startswith("A loop of what kernels do")


# --- runs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def schema():
    return json.loads((ROOT / "docs" / "schema.json").read_text())


@pytest.mark.uncompiled
@pytest.mark.parametrize("mode", ["bare", "emulated", "passthrough"])
def test_run_json_obeys_the_schema(mode, guest, schema):
    result = vpmu("run", guest(COUNTED), "--vpmu", mode, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    jsonschema.validate(found, schema)
    assert found["vpmu"] == mode
    assert found["exit_code"] == 0
    assert found["counters"]["pmc0"] == 1 + 2 * 3 + 2 + 1
    assert found["msr"]["IA32_PERF_GLOBAL_CTRL"]["writes"] == 3
    assert (found["exits"] == {}) == (mode == "bare")


@pytest.mark.uncompiled
@pytest.mark.parametrize(
    ("text", "status", "stop"),
    [
        ("_start: mov al, 0\n out 0xf4, al\n", 0, "debug-exit, exit code 0"),
        ("_start: mov al, 3\n out 0xf4, al\n", 1, "debug-exit, exit code 3"),
        ("_start: hlt\n", 0, "halted"),
        ("_start: ud2\n", 1, "triple-fault"),
        ("_start: jmp _start\n", 1, "max-insns"),
    ],
)
def test_exit_status_follows_the_guest(text, status, stop):
    result = vpmu("run", "-", "--max-insns", 1000, stdin=text)
    assert result.exit_code == status, result.output
    assert stop in result.output


@pytest.mark.uncompiled
def test_serial_output_is_shown():
    text = "_start: mov dx, 0x3f8\n mov al, 'o'\n out dx, al\n mov al, 'k'\n out dx, al\n hlt\n"
    result = vpmu("run", "-", stdin=text)
    assert lines(result)[0] == "ok"
    assert json.loads(vpmu("run", "-", "--json", stdin=text).stdout)["serial"] == "ok"


@pytest.mark.uncompiled
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--vpmu", "emulatd"], "emulated"),
        (["--cpu", "sprr"], "spr"),
        (["--ram", "0"], "0 is not in the range"),
        (["--filter", "no-such.toml", "--vpmu", "emulated"], "no-such.toml"),
        (["--filter", "f.toml"], "there is no hypervisor"),
        (["--hz", "100"], "there is no hypervisor"),
        (["--vpmu", "none", "--costs", "hi"], "allowed: low typical high"),
        (["--host-event", "instrucions:D", "--vpmu", "emulated"], "instructions"),
        (["--host", "noisy_neighbor.s", "--vpmu", "emulated"], "did you mean"),
        (["--host", "", "--vpmu", "emulated"], "'': no such file"),
        (["--host", str(ROOT), "--vpmu", "emulated"], "is a folder"),
        (["--host", "/dev/null", "--vpmu", "emulated"], "/dev/null: is a device"),
        (["--host", str(ROOT / "guests/host/lockup.s")], "there is no hypervisor"),
        (["--set", "pmu.gpp=4"], "pmu.gp"),
        (["--max-insns", "many"], "not a valid integer"),
        (["--max-insns", str(1 << 64)], "is not in the range"),
    ],
)
def test_wrong_settings_name_the_key_and_what_would_do(args, message):
    result = vpmu("run", "-", *args, stdin="_start: hlt\n")
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert "Traceback" not in result.output


@pytest.mark.uncompiled
def test_demo_puts_modes_side_by_side(guest):
    path = guest(COUNTED)
    result = vpmu("demo", path, "--modes", "bare,emulated")
    assert result.exit_code == 0, result.output
    rows = {line.split("  ")[1].strip(): line.split()[-2:] for line in lines(result) if "  " in line}
    assert rows["pmc0"] == ["10", "10"]
    assert rows["MSR_WRITE"][0] == "-"
    found = json.loads(vpmu("demo", path, "--modes", "bare,emulated", "--json").stdout)
    assert set(found) == {"bare", "emulated"}


@pytest.mark.uncompiled
def test_check_green_red_and_perturbed(guest):
    path = guest(COUNTED)
    result = vpmu("check", path)
    assert result.exit_code == 0, result.output
    assert "4 expectations, 0 failed" in result.output
    assert vpmu("check", path, "--perturb").exit_code == 0
    wrong = guest(COUNTED.replace("+ 1\n#: expect bare", "+ 2\n#: expect bare"), "wrong.s")
    result = vpmu("check", wrong)
    assert result.exit_code == 1
    assert f"{wrong}:4: [emulated]" in result.output
    assert "left is 10, right is 11" in result.output
    report = json.loads(vpmu("check", wrong, "--json").stdout)
    assert report["failed"] == 2
    blind = guest(COUNTED.replace("exits.MSR_WRITE == 0", "exits.MSR_WRITE >= 0"), "blind.s")
    result = vpmu("check", blind, "--perturb")
    assert result.exit_code in (0, 1)


@pytest.mark.uncompiled
def test_check_says_when_there_is_nothing_to_check(guest, tmp_path):
    path = guest("_start: hlt\n")
    result = vpmu("check", path)
    assert result.exit_code != 0
    assert "nothing can fail" in result.output
    assert vpmu("check", tmp_path).exit_code == 2


@pytest.mark.uncompiled
def test_broken_expectation_has_a_place(guest):
    path = guest("#: expect all: pmc0 == NOPE\n_start: hlt\n")
    result = vpmu("check", path)
    assert result.exit_code == 2
    assert f"{path}:1: nothing is called 'NOPE'" in result.output


@pytest.mark.uncompiled
@pytest.mark.parametrize("mode", ["bare", "passthrough"])
def test_explain_walks_the_decision(mode):
    result = vpmu("explain", "wrmsr", "IA32_PERFEVTSEL0", "0x4300c0", "--vpmu", mode)
    assert result.exit_code == 0, result.output
    assert "INST_RETIRED.ANY_P" in result.output
    assert ("MSR bitmap" in result.output) == (mode != "bare")
    reserved = vpmu("explain", "wrmsr", "IA32_PERF_GLOBAL_CTRL", "0x100000000000", "--vpmu", mode)
    assert "#GP" in lines(reserved)[-1] or "#GP" in reserved.output


@pytest.mark.slow
def test_interrupt_gives_state_not_traceback(guest):
    path = guest("_start: inc rbx\n jmp _start\n", "endless.s")
    assert vpmu("run", path, "--max-insns", 10).exit_code == 1  # compiled by now
    # A shell starts background jobs with SIGINT ignored, and children inherit that.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from vpmu_emu.cli import main; sys.argv[0] = 'vpmu'; main()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, "run", path],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            child.communicate(timeout=5)  # it does not end by itself
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 130, (out, err)
    assert "stopped by interrupted" in out
    assert "instructions" in out
    assert "Traceback" not in err


@pytest.mark.slow
def test_wheel_carries_its_data(tmp_path):
    """A wheel in a folder of its own runs a lesson: nothing reaches back into the checkout.

    Uncompiled, and no compiled code comes with it (tests/test_wheel.py): asked is where the data is.
    """
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {"VPMU_WHEEL_MODES": ""}
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", tmp_path, ROOT],
        capture_output=True, check=True, env=env,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    place = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", place, wheel],
        check=True, env=env,
    )  # fmt: skip
    code = (
        "import sys; from vpmu_emu.cli import main; import vpmu_emu; "
        "print(vpmu_emu.__file__, file=sys.stderr); sys.argv[0] = 'vpmu'; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "run", place / "vpmu_emu/_guests/lessons/01_count.s", "--json"],
        capture_output=True, text=True, cwd=tmp_path,
        env={**env, "PYTHONPATH": str(place), "NUMBA_DISABLE_JIT": "1"},
    )  # fmt: skip
    assert str(place) in done.stderr
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["exit_code"] == 0


@pytest.mark.uncompiled
def test_readme_shows_what_happens():
    from tests.tools.readme import README, with_demo

    text = README.read_text(encoding="utf-8")
    assert with_demo(text) == text, "run `python -m tests.tools.readme`"
