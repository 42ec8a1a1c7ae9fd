"""What follows HZ: the tick, turns of multiplexed events, samples of one event in a tick."""

from __future__ import annotations

import pytest

from tests.linux.syscalls.kernel import Kernel
from tests.linux.syscalls.test_files import content, openat
from vpmu_emu.linux.sysctl import set_sample_rate
from vpmu_emu.options import HERTZ, Options
from vpmu_emu.setup.vm import init_config, new_record
from vpmu_emu.tables.cpus import CPU_NAMES, cpu
from vpmu_emu.tables.modes import MODES

pytestmark = pytest.mark.uncompiled


@pytest.mark.parametrize("name", CPU_NAMES)
@pytest.mark.parametrize("hz", HERTZ)
def test_what_follows_hz(hz, name):
    S = new_record()[0]
    init_config(S, cpu(name), MODES["emulated"], Options(vpmu="emulated", hz=hz))
    config, khz = S.config, cpu(name).core_khz
    assert int(config.hz) == hz
    assert abs(int(config.tick_interval) * hz - khz * 16_000) < 16 * hz
    assert int(config.mux_interval) == {100: 10, 250: 4, 300: 3, 1000: 1}[hz] * khz * 16
    assert int(config.max_samples_per_tick) == {100: 1000, 250: 400, 300: 334, 1000: 100}[hz]
    set_sample_rate(config, 1)
    assert int(config.max_samples_per_tick) == 1


@pytest.mark.parametrize("hz", HERTZ)
def test_a_program_reads_it_in_sysfs(hz):
    kernel = Kernel().start()
    kernel.S.config.hz = hz
    fd = openat(kernel, "/sys/bus/event_source/devices/cpu/perf_event_mux_interval_ms")
    assert content(kernel, fd) == b"%d\n" % (1000 // hz)
