"""By whatever door something comes in: one sentence and a status of ours, never a traceback."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

import vpmu_emu
from tests.conftest import ROOT
from vpmu_emu.asm import assemble
from vpmu_emu.cli import main
from vpmu_emu.report import visible
from vpmu_emu.system import System
from vpmu_emu.traces.text import lines

pytestmark = pytest.mark.uncompiled

EXITS = "_start: xor eax, eax\n out 0xf4, al\n"
ENDLESS = "_start: inc rbx\n jmp _start\n"
FAULTS = "_start: mov ecx, 0x999\n rdmsr\n"


def vpmu(*args, stdin=None):
    result = CliRunner().invoke(main, [str(a) for a in args], input=stdin)
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def guest(tmp_path):
    def write(text, name="guest.s"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


# --- settings that mean nothing ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--kvm", "nonsense=1"], "there is no hypervisor"),
        (["--quirk", "v1-fixed-no-pmi"], "there is no hypervisor"),
        (["--all-passthrough"], "there is no hypervisor"),
        (["--watchdog-thresh", "-1"], "there is no hypervisor"),
        (["--watchdog-thresh", "10"], "there is no hypervisor"),
        (["--vpmu", "emulated", "--watchdog-thresh", "10"], "without --watchdog"),
        (["--vpmu", "emulated", "--watchdog", "nmi", "--watchdog-thresh", "nan"], "0.0001 to 60"),
        (["--vpmu", "none", "--guest", "nonsense=99"], "unknown key"),
        (["--vpmu", "none", "--guest", "pmu.gp=99"], "out of range"),
        (["--vpmu", "none", "--guest", "pmu.version=2"], "guests have no PMU in mode none"),
        (["--vpmu", "emulate"], "did you mean emulated?"),
        (["--trace", "x.json"], "no trace format"),
        (["--trace", "/no/such/folder/t.txt"], "no such folder"),
        (["--trace", "-", "--json"], "both write to standard output"),
        (["--set", "pmu.gp=1" + "0" * 5000], "is not NAME=NUMBER"),
        (["--set", f"pmu.gp=0x{'f' * 5000}"], "is not NAME=NUMBER"),
        (["--set", "pmu.gp=٣"], "is not NAME=NUMBER"),
        (["--vpmu", "emulated", "--host-event", "cyc\nles"], "no event is named"),
        (["--vpmu", "emulated", "--host-event", "cycles/period=" + "9" * 5000 + "/"], "is not a number"),
    ],
)
def test_refused_before_anything_compiles(args, message, monkeypatch):
    monkeypatch.setattr("vpmu_emu.build.is_built", lambda mode: pytest.fail("asked for compiled code"))
    result = vpmu("run", "-", *args, stdin=EXITS)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert len(result.output) < 1000


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["rdmsr", "0x1000000c1"], "is not what ECX can hold"),
        (["rdmsr", "-1"], "is not what ECX can hold"),
        (["rdpmc", "0x100000000"], "is not what ECX can hold"),
        (["rdpmc", "0", "5"], "RDPMC takes none"),
        (["rdmsr", "0xc1", "--vpmu", "passthru"], "did you mean passthrough?"),
        (["wrmsr", "0xc1", "9" * 5000], "does not fit 64 bits"),
    ],
)
def test_explain_refuses_what_no_instruction_can_ask(args, message):
    result = vpmu("explain", "--", *args[:2], *args[2:]) if "--vpmu" not in args else vpmu("explain", *args)
    assert result.exit_code == 2, result.output
    assert message in result.output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("events = [0x" + "f" * 5000 + "]", "not a 64-bit number"),
        ("events = [" + "9" * 5000 + "]", "not TOML"),
        ("events = " + "[" * 5000, "not TOML|nested too deeply"),
        ("fixed_counter_bitmap = 0x" + "f" * 5000, "is not allowed"),
        (b"events = [\xff]", "cannot read"),
    ],
)
def test_filters(guest, text, message):
    head = b'action = "deny"\n'
    path = guest(head + (text if isinstance(text, bytes) else text.encode()), "f.toml")
    result = vpmu("run", "-", "--vpmu", "emulated", "--filter", path, stdin=EXITS)
    assert result.exit_code == 2, result.output
    assert any(part in result.output for part in message.split("|")), result.output[:500]


# --- what is lost is said ----------------------------------------------------------------------------


def test_a_trace_says_what_it_lost(monkeypatch, tmp_path):
    system = System(assemble("_start: mov ebx, 40\n1: mov ecx, 0xc1\n rdmsr\n dec ebx\n jnz 1b\n hlt\n"),
                    trace=True)  # fmt: skip
    stop = system.run()
    assert system.lost() == {"serial": 0, "trace": 0}
    system.E.ring_head += len(system.E.ring)
    values = system.result(stop).to_json()
    assert values["lost"]["trace"] == 40
    from vpmu_emu.report import summary
    from vpmu_emu.traces.files import write_trace

    assert "40 events are lost" in summary(values, "x")
    write_trace(system, tmp_path / "t.txt")
    assert (tmp_path / "t.txt").read_text().startswith("cpus=1\nCPU:0 [LOST 40 EVENTS]\n")


def test_a_serial_port_says_what_it_lost():
    system = System(assemble("_start: mov dx, 0x3f8\n mov al, 'x'\n out dx, al\n hlt\n"))
    stop = system.run()
    system.core.serial_len = len(system.E.serial) + 1234
    values = system.result(stop).to_json()
    assert values["lost"]["serial"] == 1234
    from vpmu_emu.report import summary

    assert "1,234 characters more than are kept" in summary(values, "x")


def test_trace_to_standard_output_and_from_the_debugger(guest, tmp_path):
    path = guest("_start: mov ecx, 0xc1\n rdmsr\n hlt\n")
    result = vpmu("run", path, "--trace", "-")
    assert ": guest_rdmsr:          c1 = 0x0 (IA32_PMC0" in result.stdout.splitlines()[1]
    assert not Path("-").exists()
    out = tmp_path / "t.trace"
    assert vpmu("debug", path, "--trace", out, stdin="c\nq\n").exit_code == 0
    assert "guest_rdmsr: c1" in out.read_text()


def test_the_trace_numbers_perf_events_as_the_report_does():
    text = "_start: mov ecx, 0x186\n mov eax, 0x4300c0\n xor edx, edx\n wrmsr\n"
    text += "mov ecx, 0x38f\n mov eax, 1\n wrmsr\n hlt\n"
    options = {"vpmu": "emulated", "host_events": ["instructions:D", "cycles"], "trace": True, "ram": 2}
    result = vpmu_emu.run(assemble(text), **options)
    known = {event["id"] for event in result.values["perf"]["events"]}
    found = re.findall(r"perf_event_\w+: event (\d+)", "\n".join(lines(result.events())))
    assert {int(number) for number in found} <= known
    assert len(set(found)) == len(known) == 3


def test_asm_does_not_write_over_its_sources(guest):
    include = guest(".equ X, 1\n", "x.inc")
    path = guest(f'.include "{include}"\n_start: hlt\n')
    for output in (path, include):
        before = output.read_bytes()
        result = vpmu("asm", path, "-o", output)
        assert result.exit_code == 2
        assert "would be overwritten" in result.output
        assert output.read_bytes() == before
    assert CliRunner().invoke(main, ["asm", str(path), "-o", "-"]).stdout_bytes.startswith(b"\x7fELF")


def test_a_trace_does_not_write_over_what_was_read(guest):
    path = guest("_start: hlt\n", "plain.txt")
    before = path.read_bytes()
    for words in ((path,), (guest("_start: hlt\n"), "--vpmu", "none", "--host", path)):
        result = vpmu("run", *words, "--trace", path)
        assert result.exit_code == 2
        assert "would be overwritten" in result.output
    assert path.read_bytes() == before
    result = vpmu("run", path, "--trace", "")
    assert (result.exit_code, "cannot write ''" in result.output) == (2, True)


@pytest.mark.parametrize("words", [("asm", "-o"), ("run", "--trace")], ids=" ".join)
def test_outputs_are_written_as_a_whole_and_a_pipe_has_a_reader(words, guest, tmp_path, monkeypatch):
    command, option = words
    text = "_start: mov ecx, 0x186\n xor eax, eax\n xor edx, edx\n wrmsr\n hlt\n"
    path, pipe, out = guest(text), tmp_path / "pipe", tmp_path / "out"
    os.mkfifo(pipe)
    result = vpmu(command, path, option, pipe)
    assert (result.exit_code, "a pipe that nobody reads" in result.output) == (2, True)
    assert vpmu(command, path, option, out).exit_code == 0
    whole = out.read_bytes()
    assert whole
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert vpmu(command, path, option, pipe).exit_code == 0
    assert os.read(reader, 1 << 16) == whole
    os.close(reader)
    out.chmod(0o600)
    assert vpmu(command, path, option, out).exit_code == 0
    assert out.stat().st_mode & 0o777 == 0o600
    full = vpmu(command, path, option, "/dev/full")
    assert (full.exit_code, "cannot write /dev/full: No space left" in full.output) == (2, True)


    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    vpmu(command, path, option, out)
    assert out.read_bytes() == whole
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.endswith(".part")) == []


# --- what steers a terminal ----------------------------------------------------------------------------


def test_visible():
    assert visible("a\tb\r\nc\n") == "a\tb\nc\n"
    assert visible("\x1b]0;x\x07\x9b2J\x7f\r\u202e") == "\\x1b]0;x\\x07\\x9b2J\\x7f\\x0d\\u202e"


ESCAPE = "\x1b[31m"


def test_escapes_of_guests_are_shown_and_json_has_them(guest):
    prints = "".join(f" mov al, {ord(c)}\n out dx, al\n" for c in ESCAPE)
    code = f"_start: mov dx, 0x3f8\n{prints}{EXITS[8:]}"
    path = guest(code)
    assert "\x1b" not in vpmu("run", path).output
    assert "\\x1b[31m" in vpmu("run", path).output
    assert json.loads(vpmu("run", path, "--json").stdout)["serial"] == ESCAPE
    assert "\x1b" not in vpmu("demo", path, "--modes", "bare").output


def test_escapes_of_sources_are_shown(guest):
    broken = guest(f"_start: mov eax, {ESCAPE}\n")
    for command in ("asm", "run", "check", "debug"):
        assert "\x1b" not in vpmu(command, broken, stdin="q\n").output
    wrong = guest(f"#: expect all: pmc0 == 1 {ESCAPE}\n{EXITS}", "wrong.s")
    assert "\x1b" not in vpmu("check", wrong).output
    named = guest(EXITS, f"{ESCAPE}.s")
    assert "\x1b" not in vpmu("run", named).output
    assert "\x1b" not in vpmu("run", f"{ESCAPE}/none.s").output
    assert "\x1b" not in vpmu("run", "-", f"--{ESCAPE}").output


def test_bytes_that_are_no_text(guest, tmp_path):
    raw = guest(b"#: expect all: pmc0 == \xff\n_start: hlt\n", "raw.s")
    result = vpmu("check", raw)
    assert result.exit_code == 2
    assert f"{raw}:1:" in result.output
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.s"))
    odd.write_text(EXITS)
    for args in (["run", odd], ["asm", odd], ["check", odd], ["run", odd, "--json"], ["run", f"{odd}x"]):
        env = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONUTF8": "1"}
        done = subprocess.run([sys.executable, "-m", "vpmu_emu", *args], capture_output=True, env=env)
        assert b"Traceback" not in done.stderr, done.stderr
        assert done.returncode in (0, 1, 2)


# --- check -------------------------------------------------------------------------------------------


def test_a_stop_that_nothing_expects_is_red(guest):
    path = guest(f"#: modes bare\n#: expect all: pmc0 == 0\n{FAULTS}")
    result = vpmu("check", path)
    assert result.exit_code == 1
    assert "[bare] ended by triple-fault at rip" in result.output
    assert f"({path}:4)" in result.output
    assert "1 expectations, 1 failed" in result.output
    found = json.loads(vpmu("check", path, "--json").stdout)
    assert found["failed"] == 1
    assert not found["ok"]
    assert len(found["files"][0]["stops"]) == 1
    head = "#: modes bare\n#: expect all: pmc0 == 0\n"
    wanted = guest(f'{head}#: expect all: stop == "triple-fault"\n{FAULTS}')
    assert vpmu("check", wanted).exit_code == 0
    # Nothing else counts as expecting it.
    other = guest(f'{head}#: expect all: stop != "halted"\n{FAULTS}')
    assert vpmu("check", other).exit_code == 1
    assert vpmu("check", guest(f"{head}_start: hlt\n")).exit_code == 1


@pytest.mark.parametrize("command", ["check", "demo", "run"])
def test_ctrl_c_ends_all_of_it(guest, monkeypatch, command):
    path = guest(f"#: modes bare none emulated\n#: expect all: pmc0 == 0\n{EXITS}")
    runs = []

    def interrupted(system):
        runs.append(system.mode)
        raise KeyboardInterrupt

    monkeypatch.setattr(System, "run", interrupted)
    result = vpmu(command, path, *(["--modes", "bare,none"] if command == "demo" else []))
    assert result.exit_code == 130
    assert len(runs) == 1
    assert "ok" not in result.output.split()
    assert "interrupted" in result.output
    with pytest.raises(KeyboardInterrupt):
        vpmu_emu.run(assemble(EXITS))


def test_one_bad_file_does_not_end_the_others(guest, tmp_path):
    good = guest(f"#: modes bare\n#: expect all: pmc0 == 0\n{EXITS}", "a/good.s")
    guest("#: expect all: nonsense\n_start: hlt\n", "a/bad.s")
    guest(b"#: expect all: pmc0 == 0\n_start: \xff\n", "a/bytes.s")
    guest(f"#: modes bare\n#: args --ram 9999999\n#: expect all: pmc0 == 0\n{EXITS}", "a/ram.s")
    (tmp_path / "a" / "folder.s").mkdir()
    os.mkfifo(tmp_path / "a" / "fifo.s")
    (tmp_path / "a" / "gone.s").symlink_to(tmp_path / "nowhere")
    result = vpmu("check", tmp_path / "a")
    assert result.exit_code == 2
    assert f"ok     {good}: 1 of 1 hold (bare)" in result.output
    for name in ("bad", "bytes", "ram", "fifo", "gone"):
        assert f"FAILED {tmp_path / 'a' / name}.s" in result.output, name
    assert "folder.s" not in result.output
    assert "6 guests" in result.output
    for device in (tmp_path / "a" / "fifo.s", "/dev/zero"):
        assert f"{device}: not a file" in vpmu("check", device).output


@pytest.mark.parametrize(
    "line",
    [
        "args --vpmu emulated", "args --trace x.txt", "args --ram many", "args --nonsense",
        "args --set pmu.gpp=4", "args --kvm nonsense=1", "args --quirk nonsense", "args --filter none.toml",
        "args --host-event nonsense", "args --watchdog-thresh 3", "cpu sprr", "args --guest nonsense=1",
        "args --host none.s", "args --entry nowhere",
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", ["bare", "emulated"])
def test_errors_of_a_line_name_it(guest, line, mode):
    path = guest(f"# a guest\n#: modes {mode}\n#: expect all: pmc0 == 0\n#: {line}\n{EXITS}")
    result = vpmu("check", path)
    assert result.exit_code == 2, result.output
    assert f"{path}:4: " in result.output


# --- streams and signals -------------------------------------------------------------------------------


def shell(command, **settings):
    env = {**os.environ, "NUMBA_DISABLE_JIT": "1", "VPMU": f"{sys.executable} -m vpmu_emu"}
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env=env, cwd=ROOT, **settings
    )


LESSON = "guests/lessons/01_count.s"


@pytest.mark.few(5)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        (f"$VPMU run {LESSON} > /dev/full", 2, "standard output: No space left"),
        (f"$VPMU asm {LESSON} --listing > /dev/full", 2, "standard output: No space left"),
        ("$VPMU guests --json > /dev/full", 2, "standard output: No space left"),
        (f"$VPMU check {LESSON} > /dev/full", 2, "standard output: No space left"),
        (f"$VPMU run {LESSON} >&-", 2, "standard output"),
        ("$VPMU run no-such.s 2> /dev/full", 2, ""),
        (f"$VPMU run {LESSON} 2>&- > /dev/null", 0, ""),
        (f"$VPMU run {LESSON} <&- > /dev/null", 0, ""),
        ("$VPMU run - <&-", 2, ""),
        (f"$VPMU run {LESSON} | true; exit ${{PIPESTATUS[0]}}", 1, ""),
        (f"$VPMU asm {LESSON} --listing | head -1; exit ${{PIPESTATUS[0]}}", None, ""),
        (f"$VPMU run {LESSON} --trace /dev/null/t.txt", 2, "no such folder"),
    ],
)
def test_streams_that_cannot_be_written(command, status, said):
    done = shell(command)
    assert status is None or done.returncode == status, (done.returncode, done.stderr)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_ctrl_c_while_modules_are_imported(guest):
    path = guest(ENDLESS)
    code = (  # at the first import of each of these
        "import signal, sys, runpy\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "wanted, sys.argv[1:] = sys.argv[1], ['run', sys.argv[2]]\n"
        "class Finder:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == wanted: signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "runpy.run_module('vpmu_emu', run_name='__main__')\n"
    )
    for module in ("click", "vpmu_emu.asm", "vpmu_emu.linux.state", "vpmu_emu.machine.engine"):
        done = subprocess.run(
            [sys.executable, "-c", code, module, path], capture_output=True, text=True, cwd=ROOT,
            env={**os.environ, "NUMBA_DISABLE_JIT": "1"}, timeout=60,
        )  # fmt: skip
        assert (done.returncode, "Traceback" in done.stderr) == (130, False), (module, done.stderr)


@pytest.mark.few(6)
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["run", "check", "debug", "demo", "build", "cold", "bench"])
def test_signals(tmp_path, command, number):
    """Ctrl-C is 130, SIGTERM 143; no traceback, no process left behind."""
    path = tmp_path / "endless.s"
    path.write_text(f"#: modes bare\n#: expect all: pmc0 == 0\n{ENDLESS}")
    args = {
        "run": ["run", path], "check": ["check", path], "debug": ["debug", path],
        "demo": ["demo", path, "--modes", "bare,none"], "build": ["build"], "cold": ["run", path],
        "bench": ["bench", "--times", "1000"],
    }[command]  # fmt: skip
    env = {k: v for k, v in os.environ.items() if k != "NUMBA_DISABLE_JIT"}
    if command in ("build", "cold"):
        env["VPMU_CACHE_DIR"] = str(tmp_path / "cache")
    elif command != "bench":
        env["NUMBA_DISABLE_JIT"] = "1"
    code = (  # a shell's background job has SIGINT ignored, and so would its children
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from vpmu_emu.cli import main; sys.argv[0] = 'vpmu'; main()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=env, start_new_session=True, text=True,
    )  # fmt: skip
    with child:
        try:
            below = _begun(child, command)
            child.send_signal(number)
            stays = command == "debug" and number == signal.SIGINT  # a stop, as in gdb
            out, err = child.communicate("q\n" if stays else None, timeout=60)
        finally:
            child.kill()
    assert "Traceback" not in err, err
    assert child.returncode == (0 if stays else 128 + number), (out, err)
    assert not stays or "stopped: interrupted" in out
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in below) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in below)


def _begun(child, command):
    """The processes below, once the command is at its work."""
    if command == "debug":
        child.stdin.write("c\n")
        child.stdin.flush()
    if command in ("build", "cold"):
        while len(below := children(child.pid)) < 2 and child.poll() is None:
            time.sleep(0.05)
        return below
    # Compiled or not, a run spends its life in one function; until then modules are being imported.
    ticks = os.sysconf("SC_CLK_TCK")
    while child.poll() is None:
        words = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        if (int(words[11]) + int(words[12])) / ticks > 2:
            break
        time.sleep(0.05)
    return children(child.pid)


def children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
        except (OSError, ValueError):
            continue
    return found
