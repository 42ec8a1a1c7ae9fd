"""The Python interface: what is public, what it gives, and that errors are values of ours."""

from __future__ import annotations

import subprocess
import sys

import pytest

import vpmu_emu
from tests.conftest import ROOT
from vpmu_emu._jit import COMPILES
from vpmu_emu.asm import write_elf

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
