"""The whole trace is on disk; what could not be kept is counted, and a recorded run is the same run."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

import vpmu_emu
from tests.conftest import ROOT
from vpmu_emu.asm import assemble, assemble_file
from vpmu_emu.cli import main
from vpmu_emu.errors import ConfigError, LoadError
from vpmu_emu.machine.state import N_RING
from vpmu_emu.system import System
from vpmu_emu.traces import recorder as recorder_module
from vpmu_emu.traces.kernel_text import report_text
from vpmu_emu.traces.points import told
from vpmu_emu.traces.recorder import Recorder

MANY = 3 * N_RING
# As dense as events can be: RDPMC is the cheapest instruction that writes one.
DENSE = f"_start: mov ebx, {MANY}\n xor ecx, ecx\n1: rdpmc\n dec ebx\n jnz 1b\n hlt\n"
TWO = ROOT / "guests" / "host" / "vcpu_threads.s"


def recorded(program, **options):
    machine = System(program, trace=True, **options)
    recorder = Recorder(machine)
    return machine, recorder, machine.result(machine.run())


def test_nothing_is_lost_of_more_than_the_ring_holds():
    _, recorder, result = recorded(assemble(DENSE))
    recording = recorder.recording()
    assert (len(recording.events), recording.lost) == (MANY, 0)
    assert result.lost()["trace"] == 0
    assert len(result.events()) == N_RING  # which has the last ones, as ever
    times = [moment.t for moment in recording.moments()]
    assert times == sorted(times)
    plain = System(assemble(DENSE))
    assert plain.result(plain.run()) == result


def test_what_was_lost_is_said_where_it_was(monkeypatch):
    monkeypatch.setattr(recorder_module, "RING_TICKS", 1 << 20)
    machine = System(assemble(DENSE), trace=True)
    machine._slice = 1 << 40
    recorder = Recorder(machine)
    result = machine.result(machine.run())
    recording = recorder.recording()
    lost = MANY - len(recording.events)
    assert 0 < lost == recording.lost == result.lost()["trace"]
    text = list(report_text(told(recording), recording.cpus))
    said = [line for line in text if "LOST" in line]
    assert said[0].startswith("CPU:0 [LOST ")
    assert sum(int(line.split()[2]) for line in said) == lost
    assert len(text) == len(recording.events) + 1  # with the first one behind a gap in one piece


@pytest.mark.parametrize("room", [0, 64 << 10])
def test_a_full_disk_is_one_sentence(room, monkeypatch):
    machine = System(assemble(DENSE), trace=True)
    recorder = Recorder(machine)

    class Full:
        def write(self, data):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(recorder, "_file", Full())
    machine._slice = 16 * (room or N_RING)
    with pytest.raises(LoadError, match=r"trace has no room in .*: No space left on device; see TMPDIR"):
        machine.run()


@pytest.mark.parametrize("samples", [False, True])
@pytest.mark.parametrize("mode", ["bare", "emulated", "passthrough"])
def test_a_recorded_run_is_the_same_run(mode, samples):
    program = assemble_file(ROOT / "guests" / "lessons" / "06_sampling.s")
    machine = System(program, vpmu=mode, trace=True)
    recorder = Recorder(machine, samples=samples)
    result = machine.result(machine.run())
    recording = recorder.recording()
    plain = System(program, vpmu=mode)
    assert plain.result(plain.run()) == result
    ring = System(program, vpmu=mode, trace=True)
    assert ring.result(ring.run()).events().tolist() == recording.events.tolist()
    assert bool(recording.samples) == samples


def test_native_code_is_recorded_too():
    """Hot code leaves no event out, and the counters are those of the interpreter at the same times."""
    text = DENSE.replace("1: rdpmc", "1: imul edx, ebx\n rdpmc").replace(str(MANY), "30000")
    found = []
    for engine in ("interpreter", "translator"):
        machine = System(assemble(text), trace=True, engine=engine, hot=16)
        recorder = Recorder(machine, samples=True)
        machine.run()
        found.append(recorder.recording())
    own, native = found
    assert own.events.tolist() == native.events.tolist()
    assert len(native.events) == 30_000
    by_time = {sample.t: sample for sample in own.samples}
    same = [sample for sample in native.samples if sample.t in by_time]
    assert all(sample == by_time[sample.t] for sample in same)


def test_an_interrupted_run_has_its_trace(tmp_path, monkeypatch):
    path, out = tmp_path / "g.s", tmp_path / "t.txt"
    path.write_text("_start: mov ecx, 0xc1\n1: rdmsr\n jmp 1b\n")

    def between(machine):
        if machine.instructions > 1000:
            raise KeyboardInterrupt

    real = System.run

    def interrupted(machine, until=None):
        machine.between = lambda: between(machine)
        return real(machine, until)

    monkeypatch.setattr(System, "run", interrupted)
    result = CliRunner().invoke(main, ["run", str(path), "--trace", str(out)])
    assert result.exit_code == 130
    assert out.read_bytes().count(b"guest_rdmsr:") > 300


def test_who_ran_is_said():
    """Threads of a VMM with two vCPUs, on two cores: name, thread id, core and the vCPU of each."""
    options = {"vpmu": "emulated", "host": [assemble_file(TWO)], "cores": 2, "ram": 8}
    _, recorder, _ = recorded(assemble("_start: xor eax, eax\n cpuid\n hlt\n"), **options)
    recording = recorder.recording()
    lines = list(told(recording))
    exits = [line for line in lines if line.point.name == "kvm_exit"]
    fields = [field.name for field in exits[0].point.fields]
    whose = {(e.moment.task.comm, e.moment.task.pid, e.values[fields.index("vcpu_id")]) for e in exits}
    assert {vcpu for comm, _, vcpu in whose if comm == "vcpu_threads"} == {0, 1}
    assert len({pid for _, pid, _ in whose}) == len(whose) == 3
    assert ("vmm", 1, 0) in whose
    assert {line.moment.cpu for line in lines} == {0, 1}
    switches = [line for line in lines if line.point.name == "sched_switch"]
    assert all(line.moment.task[:2] == (line.values[1], line.values[0]) for line in switches)
    times = [line.moment.ns for line in lines]
    assert times == sorted(times)
    for cpu in (0, 1):  # the ring has the events of a core in order
        own = recording.events["t"][recording.events["cpu"] == cpu]
        assert (own[1:] >= own[:-1]).all()


@pytest.mark.parametrize("more", [100, pytest.param(N_RING + 100, marks=pytest.mark.laws)])
def test_the_api_keeps_all(more, tmp_path):
    path = tmp_path / "t.txt"
    trace = vpmu_emu.trace(assemble(DENSE.replace(str(MANY), str(more))), trace=path)
    assert (len(trace), trace.lost) == (more, 0)
    assert path.read_bytes().count(b"guest_rdpmc:") == more
    with pytest.raises(ConfigError, match=r"'\.ttx'; did you mean \.txt\?"):
        vpmu_emu.trace(assemble(DENSE), trace=tmp_path / "t.ttx")


@pytest.mark.parametrize("wrong", ["x.dta", "x.ttx"])
def test_names_are_checked_before_the_run(wrong, tmp_path, monkeypatch):
    monkeypatch.setattr(System, "run", lambda _: pytest.fail("it ran"))
    guest = tmp_path / "g.s"
    guest.write_text("_start: hlt\n")
    result = CliRunner().invoke(main, ["run", str(guest), "--trace", str(tmp_path / wrong)])
    assert result.exit_code == 2
    assert "did you mean ." in result.output
