"""When a CPU of the host has a tick: by its tasks, and by what its kernel stops it for."""

import pytest

from vpmu_emu.asm import assemble
from vpmu_emu.options import NOHZ
from vpmu_emu.system import System
from vpmu_emu.tables.modes import MODES

FOREVER = assemble("_start: jmp _start")
SLEEPS = assemble("_start: hlt", "sleeps.s")
HOSTED = [mode for mode in MODES if MODES[mode].hypervisor]
MS = 3_000_000  # cycles of spr


def ran(program, ms, **options):
    system = System(program, ram=2, max_cycles=int((ms + 0.5) * MS), **options)
    stop = system.run()
    return sum(int(host.timer_irqs) for host in system.S.percpu), stop.reason, system


@pytest.mark.parametrize("hz", [250, 1000])
@pytest.mark.parametrize("mode", HOSTED)
def test_a_guest_that_is_alone_is_interrupted_as_often_as_the_host_ticks(mode, hz):
    irqs, _, system = ran(FOREVER, 2000 // hz, vpmu=mode, hz=hz, nohz="idle")
    assert irqs == system.exits()["EXTERNAL_INTERRUPT"] == 2
    assert ran(FOREVER, 2000 // hz, vpmu=mode, hz=hz, nohz="full")[0] == 0


@pytest.mark.parametrize("nohz", NOHZ)
def test_two_tasks_have_a_tick_either_way(nohz, tmp_path):
    spins = tmp_path / "spins.s"
    spins.write_text("_start: jmp _start\n")
    assert ran(FOREVER, 5, vpmu="none", nohz=nohz, hz=1000, host=[str(spins)])[0] == 5


def test_a_cpu_that_idles_has_none():
    irqs, reason, _ = ran(SLEEPS, 50, vpmu="none", nohz="idle", hz=1000)
    assert (irqs, reason) == (0, "halted")
