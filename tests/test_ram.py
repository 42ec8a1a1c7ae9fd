"""Memory of a machine: as much as --ram says, where a PC has it, and what is not touched costs nothing."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from vpmu_emu.asm import assemble
from vpmu_emu.errors import ConfigError
from vpmu_emu.system import System, run
from vpmu_emu.tables.ram import LOW_RAM_MIB, MAX_RAM_MIB

pytestmark = pytest.mark.uncompiled

# Below and above the devices, at both ends of each piece; the stack is at the end of the lower one.
GUEST = """
        .macro TRY address
        mov rbx, \\address
        mov [rbx], rbx
        cmp [rbx], rbx
        jne wrong
        .endm
_start: push 7
        cmp byte ptr [rsp], 7
        jne wrong
        TRY LOW_END-24
        TRY 0x100000000
        TRY HIGH_END-8
        mov rbx, HIGH_END
        mov rax, [rbx]
wrong:  mov al, 1
        out 0xf4, al
"""


@pytest.mark.parametrize("mode", ["bare", "emulated"])
@pytest.mark.parametrize("ram", [LOW_RAM_MIB + 1, MAX_RAM_MIB])
def test_memory_above_the_devices(mode, ram):
    low, high = LOW_RAM_MIB << 20, (1 << 32) + (ram - LOW_RAM_MIB << 20)
    program = assemble(f".equ LOW_END, {low:#x}\n .equ HIGH_END, {high:#x}\n" + GUEST, "high.s")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    system = System(program, vpmu=mode, ram=ram)
    stop = system.run()
    assert (stop.reason, stop.info) == ("triple-fault", 14), str(stop)  # nothing lies behind the end
    result = system.result(stop)
    for address in (low - 24, 1 << 32, high - 8):
        assert int.from_bytes(result.read(address, 8), "little") == address
    assert result.read(low - 4, 16)[4:] == bytes(12)
    assert result.read(low - 8, 8) == system.read(low - 8, 8)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20


@pytest.mark.parametrize("ram", [1, MAX_RAM_MIB + 1])
def test_no_other_size(ram):
    with pytest.raises(ConfigError, match=f"2 to {MAX_RAM_MIB}"):
        run(assemble("hlt", "x.s"), ram=ram)


def test_everybody_names_the_same_limit():
    command = [sys.executable, "-m", "vpmu_emu", "run", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, cwd=ROOT)
    assert f"2 to {MAX_RAM_MIB}" in " ".join(done.stdout.split())
    assert f"2 to {MAX_RAM_MIB};" in (System.__doc__ or "")
