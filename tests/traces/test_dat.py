"""trace-cmd itself reads our trace.dat, and prints our text."""

from __future__ import annotations

import subprocess

import attrs
import pytest

from tests.conftest import ROOT
from vpmu_emu.asm import assemble, assemble_file
from vpmu_emu.errors import ConfigError
from vpmu_emu.load import load
from vpmu_emu.system import System
from vpmu_emu.traces.dat import trace_dat
from vpmu_emu.traces.files import write_trace
from vpmu_emu.traces.kernel_text import report_text
from vpmu_emu.traces.parse import Problem, parse
from vpmu_emu.traces.points import told
from vpmu_emu.traces.recorder import Recorder

GUESTS = ROOT / "guests"


def recording(program, **options):
    machine = System(program, trace=True, **options)
    recorder = Recorder(machine)
    machine.run()
    return recorder.recording()


def report(trace_cmd, path, *words):
    done = subprocess.run(
        [trace_cmd, "report", *words, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(
    ("guest", "options"),
    [
        ("lessons/03_overflow_pmi.s", {}),
        ("lessons/06_sampling.s", {"vpmu": "emulated", "host_events": ["instructions:D"]}),
        ("lessons/07_contention.s", {"vpmu": "emulated", "host": ["vcpu_threads"], "cores": 2, "ram": 8}),
        ("lessons/02_selectors_and_rings.s", {"vpmu": "emulated", "host": ["noisy_neighbour"]}),
    ],
    ids=["bare", "emulated", "cores", "tasks"],
)
def test_trace_cmd_prints_our_text(guest, options, trace_cmd, tmp_path):
    hosts = [assemble_file(GUESTS / "host" / f"{name}.s") for name in options.get("host", ())]
    program = assemble_file(GUESTS / guest)
    found = recording(program, **{**options, "host": hosts})
    write_trace(found, tmp_path / "t.dat")
    write_trace(found, tmp_path / "t.txt")
    text = (tmp_path / "t.txt").read_text()
    assert report(trace_cmd, tmp_path / "t.dat") == text
    assert len(text.splitlines()) > len(found.events)


@pytest.mark.laws
@pytest.mark.parametrize("mode", ["bare", "emulated", "passthrough", "mediated"])
def test_trace_cmd_prints_our_text_of_every_guest(mode, trace_cmd, tmp_path):
    """And all that our own reader makes of it are lines of a trace."""
    hosts = sorted((GUESTS / "host").glob("[np]*.s"))
    for k, path in enumerate(sorted((GUESTS / "conformance").glob("*.s"))):
        host = [] if mode == "bare" or k % 2 else [assemble_file(hosts[k // 2 % len(hosts)])]
        found = recording(load(path), vpmu=mode, host=host, max_cycles=3_000_000)
        write_trace(found, tmp_path / "t.dat")
        write_trace(found, tmp_path / "t.txt")
        text = (tmp_path / "t.txt").read_text()
        assert report(trace_cmd, tmp_path / "t.dat") == text, path
        assert not any(isinstance(item, Problem) for item in parse(text.splitlines())), path


def test_an_exception_that_kvm_injects_has_its_error_code(trace_cmd, tmp_path):
    found = recording(assemble_file(GUESTS / "conformance" / "c07_gp_rd_wr.s"), vpmu="emulated")
    write_trace(found, tmp_path / "t.dat")
    text = "".join(report_text(told(found), found.cpus))
    assert report(trace_cmd, tmp_path / "t.dat") == text
    injected = [line for line in text.splitlines() if "kvm_inj_exception" in line]
    assert len(injected) > 5
    assert all(line.endswith("kvm_inj_exception:    #GP (0x0)") for line in injected)


def test_times_far_apart(trace_cmd, tmp_path):
    """A difference of times has 27 bits of nanoseconds; what is longer is an entry of its own."""
    found = recording(assemble("_start: mov ecx, 0xc1\n rdmsr\n rdmsr\n rdmsr\n rdmsr\n hlt\n"))
    events = found.events.copy()
    events["t"][1:] += 16_000 * found.khz // 7  # a seventh of a second
    events["t"][2:] += 16_000 * found.khz * 100_000
    events["t"][3:] += 1
    found = attrs.evolve(found, events=events)
    write_trace(found, tmp_path / "t.dat")
    text = "".join(report_text(told(found), found.cpus))
    assert report(trace_cmd, tmp_path / "t.dat") == text
    assert " 100000.142857: " in text
    exact = report(trace_cmd, tmp_path / "t.dat", "-t").splitlines()[1:]
    assert [line.split(":")[0].split()[-1] for line in exact] == [
        f"{moment.ns // 10**9}.{moment.ns % 10**9:09}" for moment in found.moments()
    ]


def test_what_was_lost_and_what_was_off(trace_cmd, tmp_path):
    """The tool has a sentence of its own for gaps, and shows flags with -l."""
    program = assemble_file(GUESTS / "lessons" / "03_overflow_pmi.s")
    found = attrs.evolve(recording(program, vpmu="emulated"), gaps=((100, 12_345),))
    (tmp_path / "t.dat").write_bytes(b"".join(trace_dat(told(found), found.cpus)))
    text = "".join(report_text(told(found), found.cpus))
    said = f"CPU:0 [LOST {found.lost} EVENTS]"
    dropped = f"CPU:0 [{found.lost} EVENTS DROPPED]"
    assert text.count(said) == 1
    assert report(trace_cmd, tmp_path / "t.dat") == text.replace(said, dropped)
    write_trace(found, tmp_path / "t.trace")
    own = [line for line in (tmp_path / "t.trace").read_text().splitlines() if line.startswith(" ")]
    flags = [line.split("] ")[1][:5].replace("Z", "h") for line in own]  # this version knows no Z
    shown = report(trace_cmd, tmp_path / "t.dat", "-l").splitlines()[1:]
    assert [line.split()[1][-5:] for line in shown if "DROPPED" not in line] == flags
    assert {"d..1.", "....."} <= set(flags)


def test_a_suffix_is_asked_for_early(tmp_path):
    machine = System(assemble("_start: hlt\n"), trace=True)
    machine.run()
    with pytest.raises(ConfigError, match=r"did you mean \.dat"):
        write_trace(machine, tmp_path / "t.dta")
    write_trace(machine, tmp_path / "T.DAT")
    assert (tmp_path / "T.DAT").read_bytes().startswith(b"\x17\x08\x44tracing6\0")
