"""Waveforms, read by a library of others, are what the machine had."""

from __future__ import annotations

import sys

import pytest
from click.testing import CliRunner

from tests.conftest import ROOT
from vpmu_emu.asm import assemble, assemble_file
from vpmu_emu.cli import main
from vpmu_emu.linux.trace_kinds import TR_SCHED_SWITCH
from vpmu_emu.machine import ring as mk
from vpmu_emu.system import System
from vpmu_emu.tables.exits import exit_name
from vpmu_emu.tables.msrs import msr_name
from vpmu_emu.traces.files import recorder, write_trace
from vpmu_emu.traces.vcd_file import picoseconds

COUNTS = """
.include "msr.inc"
.macro WRITE msr, value
    mov ecx, \\msr
    mov eax, \\value
    xor edx, edx
    wrmsr
.endm
_start:
    WRITE IA32_PERFEVTSEL0, 0x4300c0
    WRITE IA32_PERFEVTSEL1, 0x4300c4
    mov r12d, 8
again:
    WRITE IA32_PERF_GLOBAL_CTRL, 3
    mov esi, 6000
1:  dec esi
    jnz 1b
    WRITE IA32_PERF_GLOBAL_CTRL, 1
    xor eax, eax
    cpuid
    mov ecx, 0
    rdpmc
    dec r12d
    jnz again
    hlt
"""
TIMES = 100


@pytest.fixture(scope="module", params=["bare", "emulated"])
def drawn(request, tmp_path_factory, require_oracle):
    require_oracle("import:vcd")
    path = tmp_path_factory.mktemp("vcd") / "t.vcd"
    options = {"vpmu": request.param, "trace": True}
    if request.param == "emulated":
        options["host"] = [assemble_file(ROOT / "guests" / "host" / "noisy_neighbour.s")]
    program = assemble(COUNTS, include=[ROOT / "guests" / "include"])
    machine = System(program, **options)
    kept = recorder(machine, path)
    machine.run()
    recording = kept.recording()
    write_trace(recording, path)
    return machine, recording, path, lambda: System(program, **options)


def words(path, name):
    """Values of a string by time: the library knows none."""
    scope, signals, now, found = [], {}, 0, {}
    for line in path.read_text().splitlines():
        part = line.split()
        if part[0] == "$scope":
            scope.append(part[2])
        elif part[0] == "$upscope":
            scope.pop()
        elif part[:2] == ["$var", "string"]:
            signals[part[3]] = ".".join([*scope, part[4]])
        elif line[0] == "#":
            now = int(line[1:])
        elif line[0] == "s" and signals[part[-1]] == name:
            found[now] = part[0][1:] if len(part) == 2 else ""
    return found


def read(path):
    import vcdvcd

    return vcdvcd.VCDVCD(str(path))


def signal(waves, name):
    return waves[next(known for known in waves.signals if known.partition("[")[0] == name)]


def test_counters_at_a_hundred_times(drawn, require_oracle):
    """Against a second machine, which runs to each time by itself."""
    require_oracle("import:vcdvcd")
    machine, recording, path, again = drawn
    waves = read(path)
    other = again()
    where = "vm0.vcpu0.pmu" if machine.has_host else "cpu0.pmu"
    times = sorted({sample.t for sample in recording.samples})
    compared, seen = 0, set()
    for t in times:
        other.run_to(t)
        if int(other.core.t) != t:
            continue  # a system call begins there, and no slice ends
        compared += 1
        pmu = other.guest_pmu()
        found = {f"pmc{k}": v for k, v in enumerate(pmu["pmc"])}
        found |= {f"fixed{k}": v for k, v in enumerate(pmu["fixed"])} | {"global_ctrl": pmu["global_ctrl"]}
        for name, value in found.items():
            drawn = signal(waves, f"{where}.{name}")[picoseconds(t, recording.khz)]
            assert int(drawn, 2) == value, (t, name)
        seen.add(tuple(found.values()))
    assert compared >= TIMES
    assert len(seen) > TIMES // 2


def test_registers_exits_and_tasks(drawn, require_oracle):
    require_oracle("import:vcdvcd")
    machine, recording, path, _ = drawn
    waves = read(path)
    scope = "vm0.vcpu0.msr" if machine.has_host else "cpu0.msr"
    last = {}
    for moment in recording.moments():
        at = picoseconds(moment.t, recording.khz)
        if moment.kind in (mk.TR_GUEST_RDMSR, mk.TR_GUEST_WRMSR) and moment.task.vcpu == (0, 0):
            last[f"{scope}.{msr_name(moment.a)}"] = at, f"{moment.b:b}"
        elif moment.kind == mk.TR_VM_EXIT:
            last["cpu0.exit_reason"] = at, exit_name(moment.a)
        elif moment.kind == TR_SCHED_SWITCH:
            last["cpu0.task"] = at, moment.comes.comm.strip("<>")
    assert f"{scope}.IA32_PERF_GLOBAL_CTRL" in last
    assert ("cpu0.task" in last) == ("cpu0.exit_reason" in last) == machine.has_host
    for name, (at, value) in last.items():
        if name in ("cpu0.exit_reason", "cpu0.task"):
            said = words(path, name)  # where it changes
            assert said[max(time for time in said if time <= at)] == value
        else:
            assert signal(waves, name)[at] == value
    changes = signal(waves, f"{scope}.IA32_PERF_GLOBAL_CTRL").tv
    assert len({value for _, value in changes}) > 1


@pytest.mark.parametrize(
    ("module", "package", "ending"),
    [
        ("vcd", "pyvcd", ".vcd"),
        ("perfetto", "perfetto", ".perfetto-trace"),
        ("pyarrow", "pyarrow", ".parquet"),
    ],
)
def test_without_the_package_one_sentence(module, package, ending, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    guest = tmp_path / "g.s"
    guest.write_text("_start: hlt\n")
    result = CliRunner().invoke(main, ["run", str(guest), "--trace", str(tmp_path / f"t{ending}")])
    assert result.exit_code == 2
    assert f"{ending} needs {package}: pip install 'vpmu-emu[trace]'" in result.output
